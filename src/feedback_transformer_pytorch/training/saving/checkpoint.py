"""Checkpoints on the disk: directories that are written atomically and verified by SHA-256.

checkpoints/00000500/
  model.safetensors         the weights
  optimizer.safetensors     the optimizer's state of each weight
  streams-0-32.safetensors  the memories of these streams, and the random state of the process that owns them
  state.json                options, fingerprints of text and tokenizer, length of metrics.jsonl, state of the meter
  manifest.json             size and SHA-256 of each of these files; written last

Each process writes the file of its own streams. The main process writes all other files. Loading unpickles nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ...errors import InputError
from ...files import begin_directory, beside, finish_directory, remove_directory, write_synced, writing
from ..processes import Processes

FORMAT = 1
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
_UPDATE = re.compile(r"\d{8,}")
_STREAMS = re.compile(r"streams-(\d+)-(\d+)\.safetensors")

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        update: the number of updates done.
        model, optimizer: the weights and the optimizer's state, by name.
        streams: the state of each process, by the streams that it owned.
        state: values that JSON can hold.
    """

    update: int
    model: Tensors
    optimizer: Tensors
    streams: Mapping[range, Tensors]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in a directory, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def updates(self) -> list[int]:
        """The updates that have checkpoints, in ascending order."""
        if not self.path.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.path.iterdir() if _UPDATE.fullmatch(entry.name))

    def folder(self, update: int) -> Path:
        """The directory of an update's checkpoint, whether it exists or not."""
        return self.path / f"{update:08d}"

    def save(self, content: Checkpoint, processes: Processes) -> None:
        """Writes a checkpoint. All processes must call it together.

        Args:
            content: its `streams` are those of this process only. Its other values count in the main process only.

        Raises:
            InputError: the checkpoint cannot be written; older checkpoints are unchanged.
        """
        folder = self.folder(content.update)
        files = {
            f"streams-{rows.start}-{rows.stop}.safetensors": save(dict(kept)) for rows, kept in content.streams.items()
        }
        if processes.is_main:
            files |= {MODEL: save(dict(content.model)), OPTIMIZER: save(dict(content.optimizer))}
            files[STATE] = _json(content.state)
        try:
            processes.on_main_rank(lambda: begin_directory(folder))
            entries = processes.on_all_ranks(lambda: _write(beside(folder), files))
            merged = {name: entry for own in entries for name, entry in own.items()}
            manifest = {"format": FORMAT, "update": content.update, "files": merged}
            processes.on_main_rank(lambda: _finish(folder, _json(manifest)))
        except InputError:
            if processes.is_main:
                shutil.rmtree(beside(folder), ignore_errors=True)
            raise

    def load(self, update: int) -> Checkpoint:
        """Reads the checkpoint of an update and verifies every byte.

        Raises:
            InputError: a file is missing or damaged; the text names the file.
        """
        folder = self.folder(update)
        contents = {name: _read(folder, name, entry) for name, entry in _manifest(folder, update).items()}
        streams = {}
        for name, content in contents.items():
            found = _STREAMS.fullmatch(name)
            if found:
                streams[range(int(found[1]), int(found[2]))] = _tensors(folder / name, content)
        return Checkpoint(
            update=update,
            model=_tensors(folder / MODEL, contents[MODEL]),
            optimizer=_tensors(folder / OPTIMIZER, contents[OPTIMIZER]),
            streams=streams,
            state=json.loads(contents[STATE]),
        )

    def keep(self, updates: set[int]) -> None:
        """Deletes all checkpoints except those of `updates`.

        Raises:
            InputError: a checkpoint cannot be deleted.
        """
        for update in set(self.updates()) - updates:
            remove_directory(self.folder(update))


def _write(folder: Path, files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Writes the files; returns their entries in the manifest."""
    for name, content in files.items():
        with writing(folder / name):
            write_synced(folder / name, content)
    return {name: _entry(content) for name, content in files.items()}


def _finish(folder: Path, manifest: bytes) -> None:
    with writing(folder / MANIFEST):
        write_synced(beside(folder) / MANIFEST, manifest)
    finish_directory(folder)


def _manifest(folder: Path, update: int) -> dict[str, Any]:
    """The entries of all files of the checkpoint."""
    path = folder / MANIFEST
    content = _bytes(path)
    try:
        manifest = json.loads(content)
        files, written_as, written_at = manifest["files"], manifest["format"], manifest["update"]
        intact = content == _json(manifest) and {MODEL, OPTIMIZER, STATE} <= set(files)
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise _damaged(path, "its content changed after it was written")
    if written_as != FORMAT:
        raise InputError(
            f"{path} has format {written_as}; this version reads format {FORMAT}; "
            "resume with the version of the package that wrote it"
        )
    if written_at != update:
        raise InputError(f"{path} belongs to update {written_at}; give the folder its own name back")
    return files


def _read(folder: Path, name: str, entry: Any) -> bytes:
    path = folder / name
    if path.parent != folder:
        raise _damaged(folder / MANIFEST, f"it lists the file {name!r}, which is outside the checkpoint")
    content = _bytes(path)
    found = _entry(content)
    if found != entry:
        raise _damaged(path, f"it has {found}, the manifest says {entry}")
    return content


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        # Sorted, because processes that shard tensors must use the same order. Cloned, because the alignment of
        # tensors changes sums, and the bytes read have no fixed alignment.
        return {name: tensor.clone() for name, tensor in sorted(load(content).items())}
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, how: str) -> InputError:
    return InputError(
        f"{path} is damaged: {how}; restore it from a copy, or delete {path.parent} to resume from the checkpoint "
        "before it, or from the start if there is none"
    )


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
