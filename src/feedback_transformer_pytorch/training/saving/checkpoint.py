"""Checkpoints on the disk: directories that are whole or absent, with a sum of every byte in them.

checkpoints/00000500/
  model.safetensors         the weights
  optimizer.safetensors     what the optimizer holds for each of them
  streams-0-32.safetensors  the memory of these streams, and the random state of the process that owns them
  state.json                numbers: how far training is, and on what
  manifest.json             size and SHA-256 of each of these files; written last

A process writes the file of its own streams, the main process all others. Nothing in them is ever unpickled.
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
    """What a checkpoint holds.

    Attributes:
        update: the updates that were done.
        model, optimizer: the weights, and what the optimizer holds for each, by name.
        streams: by the streams that a process owned, what it kept of them.
        state: plain numbers and texts.
    """

    update: int
    model: Tensors
    optimizer: Tensors
    streams: Mapping[range, Tensors]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in a directory, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def updates(self) -> list[int]:
        """The updates of which there are checkpoints, in order."""
        if not self.path.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.path.iterdir() if _UPDATE.fullmatch(entry.name))

    def folder(self, update: int) -> Path:
        """Where the checkpoint of an update is or would be."""
        return self.path / f"{update:08d}"

    def save(self, content: Checkpoint, processes: Processes) -> None:
        """Writes a checkpoint; all processes call it together.

        Args:
            content: its `streams` are those of this process alone; all else is taken from the main process.

        Raises:
            InputError: it cannot be written; the others are still there.
        """
        folder = self.folder(content.update)
        files = {
            f"streams-{rows.start}-{rows.stop}.safetensors": save(dict(kept)) for rows, kept in content.streams.items()
        }
        if processes.is_main:
            files |= {MODEL: save(dict(content.model)), OPTIMIZER: save(dict(content.optimizer))}
            files[STATE] = _json(content.state)
        try:
            processes.main_rank_first(lambda: begin_directory(folder))
            entries = processes.on_all_ranks(lambda: _write(beside(folder), files))
            merged = {name: entry for own in entries for name, entry in own.items()}
            manifest = {"format": FORMAT, "update": content.update, "files": merged}
            processes.main_rank_first(lambda: _finish(folder, _json(manifest)))
        except InputError:
            if processes.is_main:
                shutil.rmtree(beside(folder), ignore_errors=True)
            raise

    def load(self, update: int) -> Checkpoint:
        """The checkpoint of an update, every byte of it checked.

        Raises:
            InputError: names the file that is missing or damaged.
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
        """Deletes all others.

        Raises:
            InputError: they cannot be deleted.
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
    """The entries of the files that are to be there."""
    path = folder / MANIFEST
    content = _bytes(path)
    try:
        manifest = json.loads(content)
        files, written_as, written_at = manifest["files"], manifest["format"], manifest["update"]
        whole = content == _json(manifest) and {MODEL, OPTIMIZER, STATE} <= set(files)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise _damaged(path, "it is not what was written")
    if written_as != FORMAT:
        raise InputError(
            f"{path} is of format {written_as}; this version reads format {FORMAT}: "
            "go on with the version of the package that wrote it"
        )
    if written_at != update:
        raise InputError(f"{path} is of update {written_at}; put the folder back under its own name")
    return files


def _read(folder: Path, name: str, entry: Any) -> bytes:
    path = folder / name
    if path.parent != folder:
        raise _damaged(folder / MANIFEST, f"it names {name!r}")
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
        # In order, as processes that share out tensors must agree on it. Clones, as what was read lies anywhere in
        # memory, and sums over tensors depend on how they are aligned.
        return {name: tensor.clone() for name, tensor in sorted(load(content).items())}
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, how: str) -> InputError:
    return InputError(
        f"{path} is damaged: {how}; put a good copy in its place, or delete {path.parent} to go on from the "
        "checkpoint before it, if there is one, or else from the start"
    )


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
