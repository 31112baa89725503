"""The user's folder of kernels: what is taken from it, who builds, and what is kept."""

import _ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from compilers import when_compiling

from feedback_transformer_pytorch.recurrence.native import cache, compiler
from feedback_transformer_pytorch.recurrence.native import library as module
from feedback_transformer_pytorch.recurrence.native.library import library

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.usefixtures("untested")
def test_a_failure_is_remembered_for_an_hour(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    """So that not every process waits for it."""
    when_compiling(monkeypatch, tmp_path, f"echo >>'{tmp_path}/calls'; [ -e '{tmp_path}/repaired' ] && exec c++ \"$@\"")
    calls = tmp_path / "calls"
    for _ in range(2):
        assert library.__wrapped__() is None
    _, first, second = warnings()
    (failure,) = folder.glob("*.failed")
    assert second.startswith(first)
    assert f"within the last hour; delete {failure} to try again at once" in second
    (tmp_path / "repaired").touch()
    assert library.__wrapped__() is None
    assert len(calls.read_text()) == 1
    os.utime(failure, times=(0, time.time() - 3601))
    assert library.__wrapped__() is not None
    assert len(calls.read_text()) == 2
    assert not failure.exists()


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def emptied(path: Path) -> None:
    path.write_bytes(b"")  # as a power cut may leave it


def unrecorded(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


def writable_by_the_group(path: Path) -> None:
    path.chmod(0o620)


def writable_by_all(path: Path) -> None:
    path.chmod(0o602)


def record_writable_by_all(path: Path) -> None:
    path.with_suffix(".sha256").chmod(0o602)


def of_somebody_else(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only the superuser can give a file away")
    os.chown(path, 12345, -1)


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize(
    "change",
    [damaged, emptied, unrecorded, writable_by_the_group, writable_by_all, record_writable_by_all, of_somebody_else],
)
def test_a_kernel_is_built_once_and_again_when_it_is_not_the_tested_one_of_this_user(
    change: Callable[[Path], None], folder: Path, warnings: Callable[[], list[str]]
) -> None:
    def compiles() -> bool:
        compiled = library.__wrapped__()
        assert compiled is not None
        _ctypes.dlclose(compiled._handle)  # or the next one of this name would be this one, whatever is in the file
        return [line.split(",")[0] for line in warnings()] == ["compiling the CPU kernel"]

    assert compiles()
    assert not compiles()
    (built,) = folder.glob("*.so")
    change(built)
    assert compiles()
    assert not compiles()
    assert {path.name for path in folder.iterdir()} == {"lock", built.name, built.with_suffix(".sha256").name}
    assert all(not path.stat().st_mode & 0o022 for path in folder.iterdir())


@pytest.mark.usefixtures("untested")
def test_a_kernel_that_can_no_longer_be_loaded_is_built_again(folder: Path, warnings: Callable[[], list[str]]) -> None:
    """As when what it is linked to was moved by an upgrade."""
    compiled = library.__wrapped__()
    assert compiled is not None
    _ctypes.dlclose(compiled._handle)
    (built,) = folder.glob("*.so")
    built.write_bytes(b"")
    built.with_suffix(".sha256").write_text(cache._sha256(built))
    assert library.__wrapped__() is not None
    assert len(warnings()) == 2


@pytest.mark.usefixtures("untested")
def test_the_newest_kernels_are_kept_and_leftovers_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "building-long-ago").mkdir(parents=True)
    (folder / "building-now").mkdir()
    folder.chmod(0o700)
    os.utime(folder / "building-long-ago", times=(0, 0))
    for number in range(cache.KEPT + 3):
        monkeypatch.setattr(compiler, "FLAGS", [*compiler.FLAGS, f"-DNUMBER={number}"])
        assert library.__wrapped__() is not None
    kernels = {path.stem for path in folder.glob("*.so")}
    assert len(kernels) == cache.KEPT + 1
    assert {path.stem for path in folder.glob("*.sha256")} == kernels
    assert {path.name for path in folder.glob("building-*")} == {"building-now"}


@pytest.mark.usefixtures("untested")
def test_where_there_are_no_user_numbers_a_profile_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "geteuid")
    monkeypatch.delattr(os, "getuid")
    assert library.__wrapped__() is not None


def test_several_processes_build_it_once(tmp_path: Path) -> None:
    counting = tmp_path / "counting-c++"
    real = " ".join(compiler.find_compiler() or [])
    log = f"case \"$*\" in *-shared*) echo >>'{tmp_path}/calls';; esac"
    counting.write_text(f'#!/bin/sh\n{log}\nexec {real} "$@" -O0\n')
    counting.chmod(0o755)
    program = f"from {module.__name__} import library; raise SystemExit(library() is None)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "CXX": f"'{counting}'"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert (tmp_path / "calls").read_text() == "\n"
    assert sorted(map(len, said))[:2] == [0, 0]
