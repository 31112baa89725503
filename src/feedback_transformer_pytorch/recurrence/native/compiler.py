"""The machine's own C++ compiler, and what it would make of the kernel."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path

from .command import run

SOURCE = Path(__file__).parent / "source" / "interface.cpp"  # it includes the headers of its folder
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
SECONDS_TO_ANSWER = 30
SECONDS_TO_COMPILE = 300


def find_compiler() -> list[str] | None:
    """The command that starts the compiler, with the arguments that `$CXX` gives it; None where there is none.

    Without `$CXX` none is looked for on macOS, where that may open a window that offers to install one, nor on Windows,
    where compilers use another OpenMP than torch.

    Raises:
        ValueError: `$CXX` has an unbalanced quote.
    """
    given = os.environ.get("CXX", "")
    try:
        command = shlex.split(given)
    except ValueError as error:
        raise ValueError(f"CXX is {given!r}: {error}") from error
    if command or sys.platform in ("darwin", "win32"):
        return command or None
    found = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    return None if found is None else [found]


def build_key(compiler: list[str]) -> str:
    """A name for what `compile_kernel` makes: another source, compiler, processor or C library gives another name.

    Raises:
        RuntimeError, OSError: the compiler does not work.
    """
    # What the compiler predefines names its version and, for "native", what the processor can do.
    predefined = run([*compiler, *_flags(), "-dM", "-E", "-x", "c++", os.devnull], SECONDS_TO_ANSWER)
    files = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    texts = [f"{file.name}\n{file.read_text('utf-8')}" for file in files]
    parts = (*texts, *compiler[1:], *_flags(), predefined, *platform.libc_ver())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def compile_kernel(compiler: list[str], path: Path) -> None:
    """Compiles the kernel into a shared library.

    Raises:
        RuntimeError, OSError: that fails, or takes more than `SECONDS_TO_COMPILE`.
    """
    run([*compiler, *_flags(), "-shared", "-fPIC", str(SOURCE), "-o", str(path)], SECONDS_TO_COMPILE)


def _flags() -> list[str]:
    return [*FLAGS, "-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else FLAGS
