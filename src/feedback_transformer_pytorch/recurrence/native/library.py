"""The compiled kernel: built by the machine's own C++ compiler when first needed, then kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel.cpp")
SWITCH = "FEEDBACK_TRANSFORMER_NATIVE"  # an environment variable; 0 turns the kernel off
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
_log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel's functions; None where there is no compiler, where it fails, or where `SWITCH` says 0.

    The first call on a machine takes about ten seconds. Why there is none is logged, at level INFO.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        _log.info("no C++ compiler: the walk computes with torch's operations, which takes longer")
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _log.info("the kernel was not built, and the walk computes with torch's operations: %s", said)
        return None


def _built(compiler: str) -> Path:
    """The library for this source, compiler and processor, built if it is not there yet."""
    flags = [*FLAGS, "-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else FLAGS
    # What the compiler predefines names its version and, for "native", what the processor can do.
    predefined = _run([compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])
    key = hashlib.sha256("\n".join([SOURCE.read_text(), *flags, predefined]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feedback-transformer-pytorch"
    path = cache / f"kernel-{key}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _log.info("compiling %s into %s", SOURCE.name, cache)
        with tempfile.TemporaryDirectory(dir=cache) as room:
            part = Path(room) / path.name
            _run([compiler, *flags, "-shared", "-fPIC", str(SOURCE), "-o", str(part)])
            part.replace(path)
    return path


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
