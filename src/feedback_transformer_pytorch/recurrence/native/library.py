"""The compiled kernel: built by the machine's own C++ compiler when first needed, then kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import time
from pathlib import Path

import torch

from .cache import add, forget, is_tested, kernel_folder
from .command import run
from .compiler import build_key, compile_kernel, find_compiler
from .openmp import check_runtime, loaded_runtimes, pause_before_forks

SWITCH = "FEEDBACK_TRANSFORMER_NATIVE"  # an environment variable; 0 turns the kernel off
UNDER_TEST = "FEEDBACK_TRANSFORMER_NATIVE_UNDER_TEST"  # another one, in the self-test's process: the library to test
# Of the weights and of the memory's keys and values; bfloat16 goes with float32 for all else.
TYPES = ("float32", "float64", "bfloat16")
# Of weights in float32 that are rounded to a type of fewer bytes; the walk is forward only, all else is in float32.
NARROW = {torch.int8: "int8_weights", torch.bfloat16: "bfloat16_weights"}
SECONDS_TO_TEST = 120
_PREFIX = "kernel-"
_log = logging.getLogger(__name__)


def name_of(dtype: torch.dtype) -> str:
    """A type as `TYPES` and the names of the kernel's functions have it."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel's functions; None where there is no compiler, where anything fails, or where `SWITCH` says 0.

    The first call on a machine compiles and tests the kernel, which takes about twenty seconds. The log says so before,
    and why it failed if it did. A failure is never raised: torch operations compute the same.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    if UNDER_TEST in os.environ:
        return _load(Path(os.environ[UNDER_TEST]))
    try:
        compiler = find_compiler()
        if compiler is None:
            _log.info("no C++ compiler: torch operations do the CPU kernel's work, more slowly")
            return None
        return _find_or_build(compiler)
    except Exception as error:  # whatever it is, the model works without the kernel
        reason = " ".join(str(error).split()) or type(error).__name__
        _log.warning("no CPU kernel, torch operations do its work, more slowly (%s=0 is quiet): %s", SWITCH, reason)
        return None


def kernel_key() -> str | None:
    """Identifies the kernel that `library` gives: its source, compiler and processor. None where there is none."""
    compiled = library()
    return None if compiled is None else Path(compiled._name).stem.removeprefix(_PREFIX)


def _find_or_build(compiler: list[str]) -> ctypes.CDLL:
    """The library for this source, compiler and processor, built if it is not there or can no longer be loaded."""
    path = kernel_folder() / f"{_PREFIX}{build_key(compiler)}.so"
    if is_tested(path):
        try:
            return _load(path)
        except OSError:  # what it is linked to is no longer where it was
            forget(path)

    def build(part: Path) -> None:
        _log.warning("compiling the CPU kernel, once on this machine, which takes about twenty seconds")
        began = time.monotonic()
        compile_kernel(compiler, part)
        _test(part)
        _log.info("compiled the CPU kernel in %.0f s: %s", time.monotonic() - began, path)

    add(path, build)
    return _load(path)


def _load(path: Path) -> ctypes.CDLL:
    """Loads a library and makes it ready for use.

    Raises:
        OSError, AttributeError, RuntimeError: it cannot be loaded, lacks a function, or would disturb torch.
    """
    before = loaded_runtimes()
    compiled = _declared(ctypes.CDLL(str(path)))
    check_runtime(compiled, before)
    pause_before_forks(compiled)
    return compiled


def _test(path: Path) -> None:
    """Tests a library in a process of its own, as a wrong one may crash or hang.

    Raises:
        RuntimeError, OSError: it fails the test, or the test cannot be run.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise RuntimeError("there is no Python interpreter to test it with")
    package = Path(__file__).parents[len(__package__.split("."))]
    search = os.pathsep.join([str(package), *filter(None, sys.path)])
    # Threads that wait sleep: on busy processors, such as of many processes that start, spinning takes a hundred times
    # as long.
    environment = {**os.environ, UNDER_TEST: str(path), "PYTHONPATH": search, "OMP_WAIT_POLICY": "passive"}
    try:
        run(
            [sys.executable, "-P", "-m", f"{__package__.rpartition('.')[0]}.kernel_self_test"],
            SECONDS_TO_TEST,
            environment,
        )
    except RuntimeError as error:
        raise RuntimeError(f"its self-test failed: {error}") from error


def _declared(compiled: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions set."""
    address, number = ctypes.c_void_p, ctypes.c_int64
    compiled.most_rows.restype = number
    compiled.multiplies_bf16.restype = compiled.bytes_to_stream.restype = number
    names = [*TYPES, "bfloat16_pairs"] if compiled.multiplies_bf16() else [*TYPES]
    for name in (*names, *NARROW.values()):
        panel, pack = getattr(compiled, f"panel_{name}"), getattr(compiled, f"pack_{name}")
        panel.restype = number
        pack.argtypes, pack.restype = [address, *[number] * 4, ctypes.c_double, address, number], None
        for call in ("forward", "backward", "end_strip") if name in names else ("forward",):
            function = getattr(compiled, f"{call}_{name}")
            function.argtypes, function.restype = [address, address], None
    for name in NARROW.values():
        product = getattr(compiled, f"product_{name}")
        product.argtypes, product.restype = [address, address, number, address, number], None
    return compiled
