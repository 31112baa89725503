"""The compiled kernel: built by the machine's own C++ compiler when first needed, then kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernel.cpp")
SWITCH = "FEEDBACK_TRANSFORMER_NATIVE"  # an environment variable; 0 turns the kernel off
# Of the weights and of the memory's keys and values; bfloat16 goes with float32 for all else.
TYPES = ("float32", "float64", "bfloat16")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
SECONDS_TO_COMPILE = 300
KEPT = 4  # kernels of other versions, compilers or processors
_log = logging.getLogger(__name__)


def name_of(dtype: torch.dtype) -> str:
    """A type as `TYPES` and the names of the kernel's functions have it."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel's functions; None where there is no compiler, where it fails, or where `SWITCH` says 0.

    The first call on a machine takes about ten seconds. That it compiles, and that it could not, is logged.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        _log.info("no C++ compiler: time is walked by torch's operations, which takes longer")
        return None
    try:
        return _declared(_loaded(compiler))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _log.warning(
            "no compiled kernel, time is walked by torch's operations (%s=0 is quiet): %s", SWITCH, said.strip()
        )
        return None


def _compiler() -> list[str] | None:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    if sys.platform == "darwin":  # without its developer tools, asking for a compiler there opens a window
        return None
    found = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    return None if found is None else [found]


def _loaded(compiler: list[str]) -> ctypes.CDLL:
    """The library for this source, compiler and processor, built if it is not there or cannot be loaded."""
    flags = [*FLAGS, "-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else FLAGS
    # What the compiler predefines names its version and, for "native", what the processor can do.
    predefined = _run([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])
    parts = (SOURCE.read_text("utf-8"), *flags, predefined, *platform.libc_ver())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    path = _cache() / f"kernel-{key}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            path.unlink(missing_ok=True)
    _build([*compiler, *flags], path)
    return ctypes.CDLL(str(path))


def _cache() -> Path:
    """The folder of compiled kernels.

    Raises:
        OSError: others may write to it, who could then run what they like.
        RuntimeError: there is no home directory.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = (base if base.is_absolute() else Path.home() / ".cache") / "feedback-transformer-pytorch"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = cache.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{cache} is not this user's alone")
    return cache


def _build(command: list[str], path: Path) -> None:
    """Compiles beside `path`, so that it is whole at every moment, and clears away what is old."""
    _log.warning("compiling %s once into %s, which takes about ten seconds", SOURCE.name, path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as room:
        part = Path(room) / path.name
        _run([*command, "-shared", "-fPIC", str(SOURCE), "-o", str(part)])
        part.replace(path)
    for old in sorted(path.parent.glob("kernel-*.so"), key=lambda found: found.stat().st_mtime)[: -KEPT - 1]:
        old.unlink(missing_ok=True)
    for left in path.parent.glob("building-*"):
        if left.stat().st_mtime < time.time() - 10 * SECONDS_TO_COMPILE:
            shutil.rmtree(left, ignore_errors=True)


def _run(command: list[str]) -> str:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS_TO_COMPILE,
        check=True,
    ).stdout


def _declared(compiled: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions set."""
    address, number = ctypes.c_void_p, ctypes.c_int64
    compiled.most_rows.restype = number
    compiled.multiplies_bf16.restype = compiled.bytes_to_stream.restype = number
    names = [*TYPES, "bfloat16_pairs"] if compiled.multiplies_bf16() else TYPES
    for name in names:
        panel, pack = getattr(compiled, f"panel_{name}"), getattr(compiled, f"pack_{name}")
        panel.restype = number
        pack.argtypes, pack.restype = [address, *[number] * 4, ctypes.c_double, address, number], None
        for call in ("forward", "backward", "end_block"):
            function = getattr(compiled, f"{call}_{name}")
            function.argtypes, function.restype = [address, address], None
    return compiled
