"""The RUN directory: the files of a training run.

config.yaml        all options; `train --config` reads it
tokenizer.json     of text: the tokenizer, unless it is bytes
vocabulary.json    of labelled data: the words
model.safetensors  the weights of the last validation or stop
metrics.jsonl      one JSON object in each line: kinds "xz", "train" and "validation"
curves.png         a plot of the metrics
checkpoints/       the states from which training can resume (see checkpoint.py)
.lock              locked while a process trains (see lock.py)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ...data import Tokenizer, Vocabulary, load_tokenizer
from ...digest import digest
from ...errors import InputError, MissingExtraError
from ...files import (
    PART,
    check_can_be_made,
    is_utf8,
    remove_parts,
    sync_directory,
    write_atomically,
    writing,
)
from ..earlier import completed
from ..models.architectures import LanguageModel, build_model
from ..models.window import with_mem_len
from ..objective import Metric, Objective, objective_of
from ..options import TrainOptions
from ..schema import flag
from .checkpoint import Checkpoints
from .lock import LOCK
from .metrics import MetricsFile

try:
    import yaml
except ImportError as error:
    raise MissingExtraError("pyyaml", "train") from error

# Options that may change when a run resumes: paths (a fingerprint identifies the text), and what the run keeps.
_CHANGEABLE = {
    *("out", "resume", "preset", "files", "heldout", "tokenizer", "cache", "init_from", "strategy"),
    *("checkpoint_every", "checkpoint_minutes", "keep", "trackers"),
}


class Run:
    """A RUN directory that exists. `Run.create` creates one, `Run.open` opens one.

    Attributes:
        path: the directory.
        options: the options of the run.
        checkpoints: the states from which training can resume.
        metrics_file: the lines of metrics.jsonl.
    """

    def __init__(self, path: Path, options: TrainOptions) -> None:
        self.path = path
        self.options = options
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.metrics_file = MetricsFile(path / "metrics.jsonl")

    @property
    def weights(self) -> Path:
        """The file of the weights of the last validation or stop."""
        return self.path / "model.safetensors"

    @property
    def curves(self) -> Path:
        """The file of the plot."""
        return self.path / "curves.png"

    @property
    def objective(self) -> Objective:
        """What the model is trained to predict. For a text, its metric takes counted bits and bytes."""
        return objective_of(self.options)

    @property
    def metric(self) -> Metric:
        """The metric that chooses the best checkpoint."""
        return self.objective.metrics[0]

    @property
    def numbering(self) -> Path:
        """The file that says which numbers the tokens have; of a run on bytes, it does not exist."""
        return self.path / _numbering(self.options)

    @classmethod
    def create(cls, options: TrainOptions, tokens: Tokenizer | Vocabulary) -> Self:
        """Creates the directory `options.out` and writes what numbers the tokens, and the options, into it.

        Raises:
            InputError: the directory holds a run or something else (see `find`), or cannot be written.
        """
        path = Path(options.out)
        if find(options) is not None:
            raise InputError(
                f"{path} holds a run that another process has just created; give --resume to resume it, or choose "
                "another --out"
            )
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            sync_directory(path.parent)
        run = cls(path, options)
        run._write_options(tokens)
        return run

    def start_over(self, options: TrainOptions, tokens: Tokenizer | Vocabulary) -> bool:
        """Replaces the options of a run without a checkpoint and what numbers its tokens; returns whether it had
        metrics, which are deleted, and so are the weights.

        Raises:
            InputError: the run once had a checkpoint, or a file cannot be written.
        """
        validated = self.metrics_file.validated_updates()
        if len(validated) > 1:  # a process may be killed between the first validation and the first checkpoint
            raise InputError(
                f"{self.path} was trained for {validated[-1]} updates, but its checkpoints are gone; restore its "
                f"folder checkpoints, or train a new run with --config {self.path}/config.yaml "
                f"--init-from {self.path} and another --out"
            )
        existed = self.metrics_file.delete()
        for path in (self.weights, self.curves):
            with writing(path):
                path.unlink(missing_ok=True)
        self.options = options
        self._write_options(tokens)
        return existed

    def _write_options(self, tokens: Tokenizer | Vocabulary) -> None:
        values = self.options.to_dict()
        for name in ("out", "resume"):  # a RUN directory may be moved
            del values[name]
        numbering = tokens.to_json()
        if numbering is not None:
            write_atomically(self.numbering, numbering.encode())
        elif self.numbering.exists():
            with writing(self.numbering):
                self.numbering.unlink()
        write_atomically(self.path / "config.yaml", yaml.safe_dump(values, sort_keys=False).encode())

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens the run in the directory `path`.

        Raises:
            InputError: there is no run, or its config.yaml is damaged.
        """
        path = Path(path)
        config = path / "config.yaml"
        if not config.is_file():
            reason = "it has no config.yaml" if path.is_dir() else "there is no such directory"
            reason = "it is a file" if path.is_file() else reason
            raise InputError(
                f"{path} is not a RUN directory: {reason}; give one that `feedback-transformer train` created"
            )
        try:
            values = yaml.safe_load(config.read_bytes())
        except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
            raise InputError(f"{config} is not YAML ({error}); restore it from a copy") from error
        if not isinstance(values, dict):
            raise InputError(f"{config} has no options; restore the file that `feedback-transformer train` wrote")
        try:
            options = TrainOptions.from_dict({**completed(values), "out": str(path)})
        except InputError as error:
            raise InputError(f"{config}: {error}") from error
        return cls(path, options)

    def clean(self) -> None:
        """Deletes files and directories that a crash left incomplete.

        Raises:
            InputError: one of them cannot be deleted.
        """
        for folder in (self.path, self.checkpoints.path):
            remove_parts(folder)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run.

        Raises:
            InputError: tokenizer.json is missing or damaged, or the run learned labels.
        """
        if self.options.is_labelled:
            raise InputError(
                f"{self.path} was trained on labels and has no tokenizer; give a run that was trained on text"
            )
        if self.numbering.exists():
            return load_tokenizer(self.numbering)
        if self.options.tokenizer != "bytes":
            raise InputError(f"{self.numbering} is missing; restore it from a copy")
        return load_tokenizer("bytes")

    def vocabulary(self) -> Vocabulary:
        """The words of a run on labelled data.

        Raises:
            InputError: vocabulary.json is missing or damaged.
        """
        return Vocabulary.from_file(self.numbering)

    def tokens(self) -> Tokenizer | Vocabulary:
        """What numbers the tokens.

        Raises:
            InputError: its file is missing or damaged.
        """
        return self.vocabulary() if self.options.is_labelled else self.tokenizer()

    def save_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replaces the weights atomically.

        Raises:
            InputError: the new weights cannot be written; the old ones are unchanged.
        """
        write_atomically(self.weights, save(dict(weights), metadata={"sha256": digest(weights)}))

    def load_model(self, num_tokens: int, mem_len: int | None = None) -> LanguageModel:
        """The model with the weights of the last validation or stop, in evaluation mode.

        Args:
            mem_len: memory slots M, if they differ from training.

        Raises:
            InputError: the weights are missing or damaged, or do not match the options of this run, or the model has no
                position for so many slots.
        """
        if not self.weights.is_file():
            raise InputError(
                f"{self.path} has no weights yet, because training did not reach a validation; "
                f"resume it with `feedback-transformer train --resume --out {self.path}`"
            )
        state = self._read_weights()
        if mem_len is not None:
            state = with_mem_len(state, self.options, mem_len)
        model = build_model(self.options, num_tokens, mem_len)
        check_fit(model.state_dict(), state, self.weights, self.path / "config.yaml")
        model.load_state_dict(state)
        return model.eval()

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl.

        Raises:
            InputError: the file cannot be written.
        """
        self.metrics_file.append(record)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl; none if the file does not exist.

        Raises:
            InputError: a line is not a JSON object with a kind.
        """
        return self.metrics_file.records()

    def validated(self) -> dict[int, float]:
        """The `metric` of all validations, by update.

        Raises:
            InputError: as `metrics` does.
        """
        return {r["update"]: r[self.metric.name] for r in self.metrics() if r["kind"] == "validation"}

    def _read_weights(self) -> dict[str, torch.Tensor]:
        content = self.weights.read_bytes()
        try:
            state = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            expected = header.get("__metadata__", {}).get("sha256")  # None in weights copied from a checkpoint
            if expected is not None and expected != digest(state):
                raise ValueError("its numbers do not match its SHA-256")
        except (SafetensorError, ValueError) as error:
            raise InputError(
                f"{self.weights} is damaged ({error}); restore it from a copy or from a checkpoint, or train a new run"
            ) from error
        return state


def find(options: TrainOptions) -> Run | None:
    """The run in `options.out` that is to be resumed; None if a new run can be created there.

    Raises:
        InputError: `options.out` holds a run with other options, or other files, or surely cannot be written; or
            `resume` is set without a run; or a name is not UTF-8.
    """
    for name in [options.out, *options.files, *options.heldout]:
        if not is_utf8(name):
            raise InputError(f"{name!r} is not UTF-8, the encoding of config.yaml; rename this file or directory")
    path = Path(options.out)
    if (path / "config.yaml").exists():
        run = Run.open(path)
        for name, here in fixed_options(options).items():
            there = getattr(run.options, name)
            if here != there:
                raise InputError(
                    f"{path} already holds a run, with {flag(name)} {there!r}, not {here!r}; choose another --out, "
                    "or give --resume and no other options to resume it"
                )
        return run
    if options.resume:
        raise InputError(f"there is no run in {path} to resume; give the directory of a run as --out")
    if path.exists() and not path.is_dir():
        raise InputError(f"--out is {path}, which is a file; give a directory")
    numbering = _numbering(options)
    begun = {LOCK, "config.yaml" + PART, numbering, numbering + PART}  # left by a crash in `Run.create`
    if path.is_dir() and {entry.name for entry in path.iterdir()} - begun:
        raise InputError(f"{path} is not empty and does not hold a run; choose another --out")
    check_can_be_made(path)
    return None


def _numbering(options: TrainOptions) -> str:
    return "vocabulary.json" if options.is_labelled else "tokenizer.json"


def fixed_options(options: TrainOptions) -> dict[str, Any]:
    """The options that cannot change when a run resumes."""
    return {name: value for name, value in options.to_dict().items() if name not in _CHANGEABLE}


def check_fit(
    expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], weights: Path, config: Path
) -> None:
    """Raises InputError unless the tensors of the file `weights` fit the model that the file `config` describes."""
    for name in sorted(expected.keys() | given.keys()):
        here, there = (tuple(state[name].shape) if name in state else "missing" for state in (given, expected))
        if here != there:
            raise InputError(
                f"{weights} does not match {config}: {name} is {here} in the weights "
                f"and {there} in the model; restore the two files of the same run"
            )
