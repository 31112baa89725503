"""The kernel's threads: torch's own, and none that a forked child would wait for."""

import ctypes
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch

from feedback_transformer_pytorch import FeedbackTransformer
from feedback_transformer_pytorch.recurrence.native import kernel, openmp
from feedback_transformer_pytorch.recurrence.native.command import run
from feedback_transformer_pytorch.recurrence.native.compiler import find_compiler
from feedback_transformer_pytorch.recurrence.native.library import library


@pytest.fixture(autouse=True)
def built() -> None:
    if library() is None:
        pytest.skip("no compiled kernel")


def walk() -> torch.Tensor:
    """Logits that the kernel has computed with all threads."""
    torch.manual_seed(0)
    model = FeedbackTransformer(num_tokens=11, dim=64, depth=2, mem_len=5, seq_len=1, heads=2, dim_head=4)
    with torch.no_grad():
        return model(torch.randint(0, 11, (8, 40)))


def walk_in_child(expected: torch.Tensor, large: torch.Tensor) -> None:
    assert torch.equal(walk(), expected)
    assert torch.isfinite(large @ large).all()


def walk_and_fork() -> None:
    """Runs the kernel and torch in two threads here, then in a forked child, and here a second time."""
    torch.set_num_threads(2)
    kernel.WORK_OF_A_THREAD = 0
    assert library() is not None
    expected, large = walk(), torch.randn(1000, 1000)
    assert torch.isfinite(large @ large).all()
    child = multiprocessing.get_context("fork").Process(target=walk_in_child, args=(expected, large), daemon=True)
    child.start()
    child.join(60)
    assert not child.is_alive(), "the child hangs"
    assert child.exitcode == 0
    assert torch.equal(walk(), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_forked_child_does_not_wait_for_its_parents_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it where torch's operations compute: they have the same threads."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # where other tests run, spinning takes long
    process = multiprocessing.get_context("spawn").Process(target=walk_and_fork)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_it_runs_on_the_threads_of_torch() -> None:
    compiled, before = library(), torch.get_num_threads()
    assert compiled is not None
    openmp.check_runtime(compiled, set())
    assert torch.get_num_threads() == compiled.omp_get_max_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which libraries are loaded")
def test_a_second_runtime_of_llvms_family_is_refused_before_it_is_called(tmp_path: Path) -> None:
    """It would end the process."""
    (tmp_path / "empty.cpp").touch()
    for name in ("libiomp5.so", "libomp.so"):
        build = [*(find_compiler() or []), "-shared", "-fPIC", str(tmp_path / "empty.cpp"), "-o", str(tmp_path / name)]
        run(build, seconds=60)
    ctypes.CDLL(str(tmp_path / "libiomp5.so"))
    before = openmp.loaded_runtimes()
    assert tmp_path / "libiomp5.so" in before
    second = ctypes.CDLL(str(tmp_path / "libomp.so"))
    with pytest.raises(RuntimeError, match="several OpenMP runtimes: .*libiomp5.so, .*libomp.so"):
        openmp.check_runtime(second, before)
