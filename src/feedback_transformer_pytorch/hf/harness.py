"""Tasks of EleutherAI's lm-evaluation-harness, solved by the model of a RUN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from ..errors import InputError, MissingExtraError
from ..files import check_can_be_written, write_atomically
from ..training.models.architectures import default_device
from ..training.options import LmEvalOptions
from ..training.saving.run import Run
from .from_run import open_text_run
from .modeling import FeedbackTransformerForCausalLM
from .tokenizer import tokenizer_of

try:
    import lm_eval
    from datasets.exceptions import DatasetsError
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table
except ImportError as error:
    raise MissingExtraError("lm_eval", "lm-eval") from error

# The harness drops the beginning of a longer text. The model takes any length, but the logits of all tokens of a text
# are in memory at once.
MAX_LENGTH = 16384


def evaluate_tasks(options: LmEvalOptions) -> str:
    """The figures of a run's model in tasks, as a table in Markdown; the file `options.out` gets them as JSON.

    Raises:
        InputError: the RUN or a task cannot be used, or the file cannot be written.
    """
    run = open_text_run(options.run)
    check_can_be_written("--out", options.out)
    tasks = _local_tasks(options)
    figures = lm_eval.evaluate(_language_model(run, options.batch_size), tasks, limit=options.limit, log_samples=False)
    if options.out is not None:
        written = json.dumps({"results": figures["results"]}, indent=2, sort_keys=True)
        write_atomically(Path(options.out), f"{written}\n".encode())
    return str(make_table(figures))


def _local_tasks(options: LmEvalOptions) -> Any:
    """The tasks of a directory, with their data."""
    folder = Path(options.include_path)
    if not folder.is_dir():
        raise InputError(f"--include-path is {folder}, which is no directory; give one of the harness's YAML files")
    manager = TaskManager(include_path=folder, include_defaults=False)
    unknown = [name for name in options.tasks if name not in manager.all_tasks]
    if unknown:
        named = (name for name in manager.all_tasks if name is not None)  # another YAML file is a task without a name
        there = ", ".join(named) or "no tasks"
        raise InputError(f"--tasks names {unknown[0]!r}, which is not in --include-path {folder}; there are {there}")
    try:
        return manager.load(options.tasks)
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"--tasks {' '.join(options.tasks)} cannot be loaded, and nothing is downloaded ({error}); the "
            "dataset_path of a task must be json or another format of files, and its data_files must be on this machine"
        ) from error


def _language_model(run: Run, batch_size: int) -> HFLM:
    """The run's model behind the harness's own class for models of `transformers`."""
    model = FeedbackTransformerForCausalLM.from_pretrained(run.path)
    model.to(default_device())  # type: ignore[arg-type]  # a decorator hides its signature
    tokenizer = tokenizer_of(run)
    (newline,) = tokenizer.encode("\n")
    return HFLM(
        pretrained=model,
        tokenizer=_with_end_of_text(tokenizer),
        backend="causal",
        batch_size=batch_size,
        max_length=MAX_LENGTH,
        prefix_token_id=newline,  # what a text begins after, since no token begins one
    )


def _with_end_of_text(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """With a token that ends a text, which the harness needs: the first special token, or else one that the model never
    writes."""
    has_special = not tokenizer.split_special_tokens
    tokenizer.add_special_tokens({"eos_token": tokenizer.pad_token if has_special else "<|endoftext|>"})
    return tokenizer
