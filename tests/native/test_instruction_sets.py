"""The compiled kernel for every x86 instruction set that the machine has: each build passes the self-test."""

import platform
from pathlib import Path

import pytest
import torch

from feedback_transformer_pytorch.recurrence.native import compiler
from feedback_transformer_pytorch.recurrence.native.library import library

# By the instruction set: what torch says of a CPU that has it.
NEEDS = {
    "x86-64-v2": {"DEFAULT", "NO AVX", "AVX2", "AVX512"},
    "x86-64-v3": {"AVX2", "AVX512"},
    "x86-64-v4": {"AVX512"},  # without bf16 products, also where "native" has them
}


@pytest.mark.parametrize("march", NEEDS)
def test_its_build_passes_the_self_test(
    march: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if platform.machine() not in ("x86_64", "AMD64") or compiler.find_compiler() is None:
        pytest.skip("no x86 CPU, or no C++ compiler")
    if torch.backends.cpu.get_cpu_capability().upper() not in NEEDS[march]:
        pytest.skip("this CPU lacks the instructions")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = [f"-march={march}" if flag.startswith("-march=") else flag for flag in compiler.FLAGS]
    assert flags != compiler.FLAGS
    monkeypatch.setattr(compiler, "FLAGS", flags)
    compiled = library.__wrapped__()
    assert compiled is not None, caplog.text
    assert not compiled.multiplies_bf16()
