"""The RUN directory: everything a training run leaves behind.

config.yaml        the options, all of them; `train --config` takes it
tokenizer.json     the tokenizer, if it is not bytes
model.safetensors  the weights of the last validation or stop
metrics.jsonl      one JSON object a line: kinds "xz", "train" and "validation"
curves.png         the metrics drawn
checkpoints/       what training goes on from (see checkpoint.py)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ...data import Tokenizer, load_tokenizer
from ...errors import InputError, MissingExtraError
from ...files import PART, append_line, cut_synced, remove_parts, sync, sync_directory, write_whole, writing
from ..models.architectures import LanguageModel, build_model
from ..options import EARLIER, TrainOptions, flag
from .checkpoint import Checkpoints

try:
    import yaml
except ImportError as error:
    raise MissingExtraError("pyyaml", "train") from error

# What may differ when a run goes on: where things are (a text is known by its fingerprint), and what is kept of it.
_FREE = {
    *("out", "resume", "preset", "files", "heldout", "tokenizer", "cache", "init_from", "strategy"),
    *("checkpoint_every", "checkpoint_minutes", "keep", "trackers"),
}


class Run:
    """A RUN directory that exists. `Run.create` makes one, `Run.open` finds one."""

    def __init__(self, path: Path, options: TrainOptions) -> None:
        self.path = path
        self.options = options
        self.checkpoints = Checkpoints(path / "checkpoints")

    @property
    def weights(self) -> Path:
        """Where the weights of the last validation are."""
        return self.path / "model.safetensors"

    @property
    def curves(self) -> Path:
        """Where the plot is."""
        return self.path / "curves.png"

    @classmethod
    def create(cls, options: TrainOptions, tokenizer: Tokenizer) -> Self:
        """Makes the directory `options.out` and writes the tokenizer and the options into it.

        Raises:
            InputError: the place is taken (see `find`), or cannot be written.
        """
        path = Path(options.out)
        find(options)
        values = options.to_dict()
        for name in ("out", "resume"):  # the directory may be moved
            del values[name]
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            sync_directory(path.parent)
        json_of_tokenizer = tokenizer.to_json()
        if json_of_tokenizer is not None:
            write_whole(path / "tokenizer.json", json_of_tokenizer.encode())
        write_whole(path / "config.yaml", yaml.safe_dump(values, sort_keys=False).encode())
        return cls(path, options)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The run in the directory `path`.

        Raises:
            InputError: there is none, or its config.yaml is damaged.
        """
        path = Path(path)
        config = path / "config.yaml"
        if not config.is_file():
            reason = "it has no config.yaml" if path.is_dir() else "there is no such directory"
            raise InputError(f"{path} is no RUN: {reason}; give a directory that `feedback-transformer train` made")
        try:
            values = yaml.safe_load(config.read_bytes())
        except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
            raise InputError(f"{config} is no YAML: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{config} holds no options; it is not what `feedback-transformer train` wrote")
        try:
            options = TrainOptions.from_dict({**EARLIER, **values, "out": str(path)})
        except InputError as error:
            raise InputError(f"{config}: {error}") from error
        return cls(path, options)

    def clean(self) -> None:
        """Deletes what a crash left half written or half deleted.

        Raises:
            InputError: it cannot be deleted.
        """
        for folder in (self.path, self.checkpoints.path):
            remove_parts(folder)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run.

        Raises:
            InputError: its file is damaged.
        """
        path = self.path / "tokenizer.json"
        return load_tokenizer(path if path.exists() else "bytes")

    def save_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replaces the weights; they are the old or the new ones at every moment, never a part.

        Raises:
            InputError: they cannot be written; the old ones are still there.
        """
        write_whole(self.weights, save(dict(weights), metadata={"sha256": _digest(weights)}))

    def load_model(self, num_tokens: int, mem_len: int | None = None) -> LanguageModel:
        """The model with the weights of the last validation, ready to read and write text.

        Args:
            mem_len: memory slots, if they are to be other than in training.

        Raises:
            InputError: there are no weights, they are damaged, or they are not those of this run's options.
        """
        if not self.weights.is_file():
            raise InputError(
                f"{self.path} has no weights yet; its training did not reach a validation: "
                f"go on with `feedback-transformer train --resume --out {self.path}`"
            )
        state = self._read_weights()
        model = build_model(self.options, num_tokens, mem_len)
        check_fit(model.state_dict(), state, self.weights, self.path / "config.yaml")
        model.load_state_dict(state)
        return model.eval()

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl.

        Raises:
            InputError: it cannot be written.
        """
        append_line(self._metrics, json.dumps(record))

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl; none if there is no such file.

        Raises:
            InputError: a line is no JSON object.
        """
        if not self._metrics.is_file():
            return []
        records = []
        for number, line in enumerate(self._metrics.read_bytes().splitlines(), 1):
            try:
                record = json.loads(line)
                record["kind"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{self._metrics}, line {number} is damaged: {error!r}; mend the line or delete it"
                ) from error
            records.append(record)
        return records

    def validated(self) -> dict[int, float]:
        """Bits per byte of all validations, by their updates.

        Raises:
            InputError: as `metrics` does.
        """
        return {r["update"]: r["bits_per_byte"] for r in self.metrics() if r["kind"] == "validation"}

    def metrics_so_far(self) -> dict[str, Any]:
        """The length of metrics.jsonl in bytes and its SHA-256, once all of it is on the disk."""
        sync(self._metrics)
        content = self._metrics.read_bytes() if self._metrics.exists() else b""
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def cut_metrics(self, so_far: Mapping[str, Any], update: int) -> None:
        """Drops what was logged after `metrics_so_far`, but for the validation of that update.

        Raises:
            InputError: what was logged before is not as it was, or the file cannot be written.
        """
        content = self._metrics.read_bytes() if self._metrics.exists() else b""
        kept, rest = content[: so_far["bytes"]], content[so_far["bytes"] :]
        if hashlib.sha256(kept).hexdigest() != so_far["sha256"]:
            raise InputError(
                f"{self._metrics} is damaged: its first {so_far['bytes']} bytes are not those that the checkpoint "
                "knows; put a good copy in its place"
            )
        if _is_validation(rest.partition(b"\n")[0], update):  # it was stopped, and made up for when training went on
            kept += rest.partition(b"\n")[0] + b"\n"
        if kept != content:
            cut_synced(self._metrics, len(kept))

    def drop_metrics(self) -> bool:
        """Deletes metrics.jsonl; returns whether there was any.

        Raises:
            InputError: it cannot be deleted.
        """
        existed = self._metrics.exists()
        with writing(self._metrics):
            self._metrics.unlink(missing_ok=True)
        return existed

    def _read_weights(self) -> dict[str, torch.Tensor]:
        content = self.weights.read_bytes()
        try:
            state = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            summed = header.get("__metadata__", {}).get("sha256")  # a checkpoint's weights are summed in its manifest
            if summed is not None and summed != _digest(state):
                raise ValueError("its numbers do not match its SHA-256")
        except (SafetensorError, ValueError) as error:
            raise InputError(
                f"{self.weights} is damaged ({error}); put a good copy in its place, as of a checkpoint, or train anew"
            ) from error
        return state

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"


def find(options: TrainOptions) -> Run | None:
    """The run that is to go on at `options.out`; None if a new one can be made there.

    Raises:
        InputError: there is a run with other options, or something else; or `resume` is asked for, and there is none.
    """
    path = Path(options.out)
    if (path / "config.yaml").exists():
        run = Run.open(path)
        for name, here in fixed_options(options).items():
            there = getattr(run.options, name)
            if here != there:
                raise InputError(
                    f"{path} already holds a run, with {flag(name)} {there!r}, not {here!r}; choose another --out, "
                    "or give --resume and no other options to go on with it"
                )
        return run
    if options.resume:
        raise InputError(f"there is no run in {path} to resume; give the directory of one as --out")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; choose another --out")
    begun = {"config.yaml" + PART, "tokenizer.json", "tokenizer.json" + PART}  # what a crash leaves at the very start
    if path.is_dir() and {entry.name for entry in path.iterdir()} - begun:
        raise InputError(f"{path} is not empty and holds no run; choose another --out")
    return None


def _is_validation(line: bytes, update: int) -> bool:
    try:
        record = json.loads(line)
        return record["kind"] == "validation" and record["update"] == update
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal; of all names and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + b"\0" + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fixed_options(options: TrainOptions) -> dict[str, Any]:
    """The options that cannot change when a run goes on."""
    return {name: value for name, value in options.to_dict().items() if name not in _FREE}


def check_fit(
    expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], weights: Path, config: Path
) -> None:
    """Raises InputError unless the tensors in the file `weights` are those of the model that `config` describes."""
    for name in sorted(expected.keys() | given.keys()):
        here, there = (tuple(state[name].shape) if name in state else "missing" for state in (given, expected))
        if here != there:
            raise InputError(
                f"{weights} does not match {config}: {name} is {here} in the weights "
                f"and {there} in the model; put back the two files that belong together"
            )
