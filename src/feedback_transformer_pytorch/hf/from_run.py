"""The configuration and the weights of a RUN directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..model import FeedbackTransformer
from ..training.saving.run import Run
from .configuration import FeedbackTransformerConfig

# How names of weights begin in a FeedbackTransformer, and in a model of transformers.
_PREFIXES = {"decoder.": "model.decoder.", "token_emb.": "model.token_emb.", "to_logits.": "lm_head."}


def is_run(path: Any) -> bool:
    """Whether `path` is a RUN directory, and no saved model of transformers."""
    if not isinstance(path, str | Path):
        return False
    return (Path(path) / "config.yaml").is_file() and not (Path(path) / "config.json").is_file()


def open_text_run(path: str | Path) -> Run:
    """The run in a directory, if its model predicts text with feedback memory.

    Raises:
        InputError: it is no RUN directory, or a run of another kind.
    """
    run = Run.open(path)
    if run.options.is_labelled:
        raise InputError(
            f"{path} was trained on labels, and a language model predicts the next token; give a run on text"
        )
    if run.options.model != "feedback":
        raise InputError(
            f"{path} holds a model of the kind {run.options.model!r}, which has no class in transformers; give a run "
            "with --model feedback"
        )
    return run


def config_and_weights(run: Run) -> tuple[FeedbackTransformerConfig, dict[str, Tensor]]:
    """What a `FeedbackTransformerForCausalLM` is made of: its configuration, and its weights by their names there.

    Raises:
        InputError: the weights are missing or damaged.
    """
    model = run.load_model(run.tokenizer().num_tokens)
    assert isinstance(model, FeedbackTransformer)
    return FeedbackTransformerConfig(**model.config.to_dict()), renamed(model.state_dict())


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a FeedbackTransformer by their names in a `FeedbackTransformerForCausalLM`."""
    found = {}
    for name, tensor in weights.items():
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        found[_PREFIXES[prefix] + name.removeprefix(prefix)] = tensor
    return found
