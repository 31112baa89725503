"""A disk that fails at any write, fsync or rename: one clear error, nothing lost, and training can go on."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from crashing import left_behind

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving.checkpoint import Checkpoints


class Disk:
    """Fails at one operation of a kind, counted from 1."""

    def __init__(self, kind: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._code, self._left = code, 0
        if kind == "write":
            self._open = Path.open
            monkeypatch.setattr(Path, "open", lambda *arguments, **keywords: self._opened(*arguments, **keywords))
        else:
            owner, name = {"fsync": (os, "fsync"), "rename": (Path, "rename"), "replace": (Path, "replace")}[kind]
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def fail_at(self, operation: int) -> None:
        """From now on, the operation of this number fails."""
        self._left = operation

    def count(self) -> None:
        """One more operation."""
        self._left -= 1
        if self._left == 0:
            raise OSError(self._code, os.strerror(self._code))

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **keywords: Any) -> Any:
            self.count()
            return original(*arguments, **keywords)

        return operation

    def _opened(self, path: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        file = self._open(path, mode, *arguments, **keywords)
        return file if "r" in mode else _File(file, self)


class _File:
    """A file that is written only halfway when the disk fails."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: bytes) -> int:
        try:
            self._disk.count()
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("kind", ["write", "fsync", "rename", "replace"])
def test_a_failing_disk_is_one_error_and_training_goes_on(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    """The k-th attempt fails at its k-th operation, until one has fewer than that."""
    options = dataclasses.replace(
        options, cache=str(tmp_path / "cache"), max_updates=8, eval_every=4, checkpoint_every=1, log_every=1
    )
    undisturbed = dataclasses.replace(options, out=str(tmp_path / "undisturbed"))
    train(undisturbed)
    checkpoints = Checkpoints(Path(options.out) / "checkpoints")
    disk = Disk(kind, code, monkeypatch)
    attempts = 0
    while True:
        attempts += 1
        disk.fail_at(attempts)
        saved = checkpoints.updates()
        try:
            train(options)
            break
        except InputError as error:
            message = str(error)
        assert "cannot be written: " + os.strerror(code) in message
        assert checkpoints.updates()[-1:] >= saved[-1:]
        for update in checkpoints.updates():
            checkpoints.load(update)
    assert attempts > 2
    assert left_behind(Path(options.out)) == left_behind(Path(undisturbed.out))
