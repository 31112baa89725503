"""The OpenMP runtime that the kernel runs on, which must be torch's."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import torch

_SOFT = 1  # omp_pause_soft


def loaded_runtimes() -> set[Path]:
    """The OpenMP runtimes of LLVM's family in this process, Intel's among them. Only Linux tells; elsewhere, none."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:
        return set()
    mapped = (Path(fields[5]) for fields in (line.split(maxsplit=5) for line in maps.splitlines()) if len(fields) == 6)
    return {path for path in mapped if re.match(r"libi?omp\d*\b", path.name)}


def check_runtime(compiled: ctypes.CDLL, before: set[Path]) -> None:
    """Refuses a kernel that does not run on torch's threads.

    Two pools of threads would wait for each other's processors; and a runtime of LLVM's family ends a process that
    holds a second one when it is first called.

    Args:
        before: `loaded_runtimes` before the kernel was loaded.

    Raises:
        RuntimeError: the kernel uses another OpenMP runtime than torch.
        AttributeError: it uses none, or one that cannot be paused.
    """
    new = loaded_runtimes() - before
    if before and new:
        names = ", ".join(sorted(map(str, before | new)))
        raise RuntimeError(f"this process would hold several OpenMP runtimes: {names}")
    threads = torch.get_num_threads()
    compiled.omp_set_num_threads(threads + 1)
    shared = torch.get_num_threads() == threads + 1
    compiled.omp_set_num_threads(threads)
    if not shared:
        raise RuntimeError("the kernel runs on another OpenMP runtime than torch")


def pause_before_forks(compiled: ctypes.CDLL) -> None:
    """Has the threads end before this process is forked; they start again when needed, in the parent and in the child.

    GNU's OpenMP does not notice a fork: in the child it would wait forever for threads that only the parent has.
    """
    pause = compiled.omp_pause_resource_all
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lambda: pause(_SOFT))
