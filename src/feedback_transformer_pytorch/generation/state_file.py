"""The state of a continuation as a file of tensors, in the format of safetensors: loading it runs no code.

Its metadata say what it is: the format and its version, the fingerprint of the model, how many tokens the texts have,
how many of them are in an unfinished segment, and a SHA-256 of everything in the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..baselines import HiddenMemory
from ..checks import check_kind
from ..digest import digest
from ..errors import InputError
from ..files import write_atomically
from ..memory import Memory, StateMemory
from .continuation import ContinuationState
from .reader import Model, ReaderState, check_model

FORMAT, VERSION = "feedback-transformer generation state", "1"
_MEMORIES: dict[str, Any] = {cls.__name__: cls for cls in (Memory, StateMemory, HiddenMemory)}


def fingerprint(model: Model) -> str:
    """SHA-256 over the class, the configuration and all weights of a model, in hexadecimal."""
    name = json.dumps([type(model).__name__, model.config.to_dict()], sort_keys=True)
    types = json.dumps({key: str(value.dtype) for key, value in model.state_dict().items()}, sort_keys=True)
    return hashlib.sha256(f"{name} {types} {digest(model.state_dict())}".encode()).hexdigest()


def save_state(path: str | Path, state: ContinuationState, model: Model) -> None:
    """Writes a state of `model` to a file, atomically.

    Raises:
        InputError: it is no state, or cannot be written; what was there before is unchanged.
    """
    check_kind("state", state, ContinuationState, "the attribute `state` of what `generate` returned")
    check_model(model)
    tensors = {"unread": state.unread, "seen": state.seen, "lengths": state.lengths, "random": state.random}
    partial = torch.zeros_like(state.lengths)
    for number, (rows, reader) in enumerate(state.readers):
        tensors |= {f"{number}.{name}": tensor for name, tensor in _tensors_of(reader).items()}
        tensors[f"{number}.rows"] = rows
        if reader.pending is not None:
            partial[rows] = reader.pending.shape[1]
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": fingerprint(model),
        "tokens": json.dumps(state.lengths.tolist()),
        "tokens_of_unfinished_segment": json.dumps(partial.tolist()),
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata["sha256"] = _digest(tensors, metadata)
    write_atomically(Path(path), save(tensors, metadata=metadata))


def load_state(path: str | Path, model: Model) -> ContinuationState:
    """Reads a state that `save_state` wrote, onto the device of the model.

    Raises:
        InputError: the file cannot be read, is damaged or no such state, or belongs to another model.
    """
    check_model(model)
    tensors, metadata = _read(Path(path))
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is not a state of a generated text; give a file that was saved as one")
    if metadata.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {metadata.get('version')!r} of its format, and this package reads version "
            f"{VERSION!r}; use the package that wrote it"
        )
    if metadata.pop("sha256", None) != _digest(tensors, metadata):
        raise InputError(f"{path} is damaged: its numbers do not match its SHA-256; restore it from a copy")
    here = fingerprint(model)
    if metadata["model"] != here:
        raise InputError(
            f"{path} belongs to another model: its fingerprint is {metadata['model'][:12]}, that of this model is "
            f"{here[:12]}; give the model that wrote it, its weights rounded to the same type"
        )
    random = tensors.pop("random")  # random states are read on the CPU
    tensors = {name: tensor.to(model.token_emb.weight.device) for name, tensor in tensors.items()}
    count = sum(name.endswith(".rows") for name in tensors)
    readers = [(tensors[f"{number}.rows"], _reader_of(tensors, f"{number}.")) for number in range(count)]
    return ContinuationState(readers, tensors["unread"], tensors["seen"], tensors["lengths"], random)


def _tensors_of(reader: ReaderState) -> dict[str, Tensor]:
    """What a reader has read, by names that say where it belongs."""
    found = {} if reader.pending is None else {"pending": reader.pending}
    for part, memory in (("memory", reader.memory), ("keys_values", reader.keys_values)):
        if memory is not None:
            fields = {field.name: getattr(memory, field.name) for field in dataclasses.fields(memory)}
            kind = type(memory).__name__
            found |= {f"{part}.{kind}.{name}": tensor for name, tensor in fields.items() if tensor is not None}
    return found


def _reader_of(tensors: Mapping[str, Tensor], prefix: str) -> ReaderState:
    """The opposite of `_tensors_of`."""
    parts: dict[str, Any] = {}
    for part in ("memory", "keys_values"):
        for kind, cls in _MEMORIES.items():
            start = f"{prefix}{part}.{kind}."
            fields = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            if fields:
                parts[part] = cls(**fields)
    return ReaderState(parts.get("memory"), parts.get("keys_values"), tensors.get(f"{prefix}pending"))


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    text = f"{json.dumps(metadata, sort_keys=True)} {digest(tensors)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, each in memory of its own, and the metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; give a file that was saved") from error
    except SafetensorError as error:
        raise InputError(f"{path} is damaged, or no state of a generated text ({error})") from error
