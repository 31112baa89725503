"""Kernels and compilers that are not what they should be."""

from pathlib import Path

import pytest

from feedback_transformer_pytorch.recurrence.native import compiler
from feedback_transformer_pytorch.recurrence.native.library import NARROW, TYPES

NAMES = (*TYPES, *NARROW.values())
# A library that can be loaded and computes nothing, compiled in no time.
EMPTY_KERNEL = "\n".join(
    [
        '#include <cstdint>\n#include <omp.h>\nextern "C" {',
        "int64_t most_rows() { return 256 * omp_get_max_threads(); }",
        "int64_t multiplies_bf16() { return 0; } int64_t bytes_to_stream() { return 0; }",
        *(f"int64_t panel_{name}() {{ return 16; }} void pack_{name}() {{}}" for name in NAMES),
        *(f"void {call}_{name}() {{}}" for call in ("forward", "backward", "end_strip") for name in TYPES),
        *(f"void forward_{name}() {{}} void product_{name}() {{}}" for name in NARROW.values()),
        "}\n",
    ]
)


def source_of(patch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    (folder / "source.cpp").write_text(text)
    patch.setattr(compiler, "SOURCE", folder / "source.cpp")


def compiler_of(patch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """A compiler that runs a shell script."""
    (folder / "c++").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "c++").chmod(0o755)
    patch.setenv("CXX", f"'{folder / 'c++'}' -m64")


def when_compiling(patch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """A compiler that can say what it is, and runs a shell script when it is to compile; $last is what to write."""
    real = " ".join(compiler.find_compiler() or [])
    compiler_of(patch, folder, f'for last; do :; done; case "$*" in *-shared*) {script};; *) exec {real} "$@";; esac')
