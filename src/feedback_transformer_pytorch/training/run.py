"""The RUN directory: everything a training run leaves behind.

config.yaml        the options, all of them; `train --config` takes it
model.safetensors  the latest weights
metrics.jsonl      one JSON object a line: kinds "xz", "train" and "validation"
curves.png         the metrics drawn
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from ..errors import InputError, MissingExtraError
from .architectures import LanguageModel, build_model
from .files import append_line, write_whole, writing
from .options import TrainOptions

try:
    import yaml
except ImportError as error:
    raise MissingExtraError("pyyaml", "train") from error


class Run:
    """A RUN directory that exists. `Run.create` makes one, `Run.open` finds one."""

    def __init__(self, path: Path, options: TrainOptions) -> None:
        self.path = path
        self.options = options

    @property
    def weights(self) -> Path:
        """Where the latest weights are."""
        return self.path / "model.safetensors"

    @property
    def curves(self) -> Path:
        """Where the plot is."""
        return self.path / "curves.png"

    @classmethod
    def create(cls, options: TrainOptions) -> Self:
        """Makes the directory `options.out` and writes the options into it.

        Raises:
            InputError: the place is taken (see `check_free`), or cannot be written.
        """
        path = Path(options.out)
        check_free(path)
        values = options.to_dict()
        del values["out"]  # the directory may be moved
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
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
        except (yaml.YAMLError, UnicodeError) as error:
            raise InputError(f"{config} is no YAML: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{config} holds no options; it is not what `feedback-transformer train` wrote")
        try:
            options = TrainOptions.from_dict({**values, "out": str(path)})
        except InputError as error:
            raise InputError(f"{config}: {error}") from error
        return cls(path, options)

    def save_weights(self, model: nn.Module) -> None:
        """Replaces the latest weights; they are the old or the new ones at every moment, never a part.

        Raises:
            InputError: they cannot be written; the old ones are still there.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        write_whole(self.weights, save(state, metadata={"format": "pt"}))

    def load_model(self, num_tokens: int) -> LanguageModel:
        """The model with the latest weights, ready to read and write text.

        Raises:
            InputError: there are no weights, they are damaged, or they are not those of this run's options.
        """
        if not self.weights.is_file():
            raise InputError(f"{self.path} has no weights yet; its training did not reach a validation: train it anew")
        try:
            state = load(self.weights.read_bytes())
        except SafetensorError as error:
            raise InputError(
                f"{self.weights} is damaged ({error}); put a good copy in its place or train anew"
            ) from error
        model = build_model(self.options, num_tokens)
        self._check_fit(model.state_dict(), state)
        model.load_state_dict(state)
        return model.eval()

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl.

        Raises:
            InputError: it cannot be written.
        """
        append_line(self.path / "metrics.jsonl", json.dumps(record))

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl; none if there is no such file."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def _check_fit(self, expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> None:
        for name in sorted(expected.keys() | given.keys()):
            here, there = (tuple(state[name].shape) if name in state else "missing" for state in (given, expected))
            if here != there:
                raise InputError(
                    f"{self.weights} does not match {self.path / 'config.yaml'}: {name} is {here} in the weights "
                    f"and {there} in the model; put back the two files that belong together"
                )


def check_free(path: Path) -> None:
    """Raises InputError unless a new run can be made at `path`: nothing is there, or an empty directory."""
    if (path / "config.yaml").exists():
        raise InputError(f"{path} already holds a run; choose another --out")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; choose another --out")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path} is not empty and holds no run; choose another --out")
