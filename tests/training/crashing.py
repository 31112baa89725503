"""Training in a process of its own that is killed, and what is left of it."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from feedback_transformer_pytorch import files
from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving import checkpoint
from feedback_transformer_pytorch.training.saving.saver import Saver

# Forked from a server that has imported everything and computed nothing, a process is there in no time.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([train.__module__, "feedback_transformer_pytorch.training.reporting.plots"])

TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes"}


def run_and_kill(options: TrainOptions, *, after: float | None = None, at_operation: int | None = None) -> int | None:
    """Trains in another process; returns its exit code.

    Args:
        after: kill it after so many seconds.
        at_operation: kill it at this operation of its saves, counted from 1, such as in the middle of writing a file.
    """
    process = _CONTEXT.Process(target=_train, args=(options.to_dict(), after, at_operation))
    process.start()
    process.join()
    return process.exitcode


def left_behind(run: Path) -> dict[str, Any]:
    """All that must not depend on what happened in between."""
    newest = max((run / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "checkpoints": sorted(folder.name for folder in (run / "checkpoints").iterdir()),
        "tensors": {file.name: file.read_bytes() for file in sorted(newest.glob("*.safetensors"))},
        "metrics": [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
    }


def count_operations(options: TrainOptions) -> int:
    """Trains here; returns how many operations on the disk its saves take."""
    counted = []
    with _watched(lambda: counted.append(1)):
        train(options)
    return len(counted)


def _train(options: dict[str, Any], after: float | None, at_operation: int | None) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if after is not None:
        threading.Timer(after, _die).start()
    done = 0

    def operation() -> None:
        nonlocal done
        done += 1
        if done == at_operation:
            _die()

    with _watched(operation):
        train(TrainOptions.from_dict(options))
    os._exit(0)  # without waiting for the timer


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _watched:  # noqa: N801 (used like a function)
    """Within it, every save calls `operation` before and after each step on the disk, and halfway through a write."""

    PLACES = ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree"))

    def __init__(self, operation: Callable[[], None]) -> None:
        self._operation = operation
        self._saving = False

    def __enter__(self) -> None:
        places = [*self.PLACES, (checkpoint, "write_synced"), (Saver, "save")]
        self._originals = [(owner, name, getattr(owner, name)) for owner, name in places]
        for owner, name, original in self._originals:
            setattr(owner, name, self._around(original))
        checkpoint.write_synced = self._halfway(files.write_synced)
        Saver.save = self._save(Saver.save)

    def __exit__(self, *_: object) -> None:
        for owner, name, original in self._originals:
            setattr(owner, name, original)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def watched(*arguments: Any, **keywords: Any) -> Any:
            self._count()
            result = original(*arguments, **keywords)
            self._count()
            return result

        return watched

    def _save(self, original: Callable[[Saver], None]) -> Callable[[Saver], None]:
        def save(saver: Saver) -> None:
            self._saving = True
            original(saver)
            self._saving = False

        return save

    def _count(self) -> None:
        if self._saving:
            self._operation()

    def _halfway(self, original: Callable[[Path, bytes], None]) -> Callable[[Path, bytes], None]:
        def write(path: Path, content: bytes) -> None:
            path.write_bytes(content[: len(content) // 2])
            self._count()
            original(path, content)

        return write
