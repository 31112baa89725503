"""The compiled kernel as a good neighbour: whatever goes wrong, one line of the log and torch operations; built once by
several processes; nothing loaded that another user could have written or that did not pass its test."""

import _ctypes
import errno
import functools
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cases import NUM_TOKENS, Case
from feedback_transformer_pytorch import FeedbackConfig
from feedback_transformer_pytorch.recurrence.native import applicability, cache, compiler
from feedback_transformer_pytorch.recurrence.native import library as module
from feedback_transformer_pytorch.recurrence.native.library import SWITCH, TYPES, library
from test_fused import compare

CONFIG = FeedbackConfig(num_tokens=NUM_TOKENS, dim=8, depth=2, mem_len=5, seq_len=1, heads=2, dim_head=4)
CASE = Case(CONFIG, batch=2, time=20, memory_slots=0, seed=0)
# A library that can be loaded and computes nothing, compiled in no time.
EMPTY_KERNEL = "\n".join(
    [
        '#include <cstdint>\n#include <omp.h>\nextern "C" {',
        "int64_t most_rows() { return 256 * omp_get_max_threads(); }",
        "int64_t multiplies_bf16() { return 0; } int64_t bytes_to_stream() { return 0; }",
        *(f"int64_t panel_{name}() {{ return 16; }} void pack_{name}() {{}}" for name in TYPES),
        *(f"void {call}_{name}() {{}}" for call in ("forward", "backward", "end_block") for name in TYPES),
        "}\n",
    ]
)
REAL_KERNEL = compiler.SOURCE

Lack = Callable[[pytest.MonkeyPatch, Path], None]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kernels, which is not there yet. Kernels are compiled fast."""
    if compiler.find_compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "FLAGS", ["-std=c++17", "-O0", "-fopenmp"])
    return tmp_path / "cache" / "feedback-transformer-pytorch"


@pytest.fixture
def untested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is compiled in no time and passes its self-test unseen."""
    source_of(monkeypatch, tmp_path, EMPTY_KERNEL)
    monkeypatch.setattr(module, "_test", lambda path: None)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Gives what the user has been shown since it was last asked."""

    def take() -> list[str]:
        shown = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        caplog.clear()
        return shown

    return take


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


def no_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.delenv("CXX", raising=False)
    patch.setenv("PATH", str(folder))


def windows(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.delenv("CXX", raising=False)
    patch.setattr(sys, "platform", "win32")


@pytest.mark.parametrize("lack", [no_compiler, windows])
def test_where_there_is_no_compiler_there_is_no_warning(
    lack: Lack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lack(monkeypatch, tmp_path)
    with caplog.at_level(logging.INFO):
        assert library.__wrapped__() is None
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "no C++ compiler" in record.message


def unbalanced_quote(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("CXX", "g++ '-O2")


def absent_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("CXX", str(folder / "no-such-compiler"))


def mute_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    compiler_of(patch, folder, "exit 1")


def broken_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    when_compiling(patch, folder, "printf 'In file:\\nx.cpp:1: error: no licence \\377\\nstopped\\n' >&2; exit 1")


def crashing_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    when_compiling(patch, folder, "kill -SEGV $$")


def hanging_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    compiler_of(patch, folder, "sleep 100; exit 1")  # in a process of its own, as compilers do their work
    patch.setattr(compiler, "SECONDS_TO_ANSWER", 0.2)


def hanging_compilation(patch: pytest.MonkeyPatch, folder: Path) -> None:
    when_compiling(patch, folder, "sleep 100; exit 1")
    patch.setattr(compiler, "SECONDS_TO_COMPILE", 0.2)


def truncated_output(patch: pytest.MonkeyPatch, folder: Path) -> None:
    when_compiling(patch, folder, 'printf half >"$last"')


def full_disk(patch: pytest.MonkeyPatch, folder: Path) -> None:
    def make(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(cache.tempfile, "TemporaryDirectory", make)


def no_permission(patch: pytest.MonkeyPatch, folder: Path) -> None:
    def mkdir(*_: object, **__: object) -> None:  # the superuser may write everywhere
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    patch.setattr(Path, "mkdir", mkdir)


def no_home(patch: pytest.MonkeyPatch, folder: Path) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    patch.delenv("XDG_CACHE_HOME")
    patch.setattr(Path, "home", home)


def file_in_the_way(patch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "file").touch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "file"))


def folder_open_to_others(patch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "cache" / "feedback-transformer-pytorch").mkdir(parents=True)
    (folder / "cache" / "feedback-transformer-pytorch").chmod(0o777)


def folder_of_somebody_else(patch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "cache" / "feedback-transformer-pytorch").mkdir(parents=True, mode=0o700)
    user = os.geteuid()
    patch.setattr(os, "geteuid", lambda: user + 1)


def endless_build_elsewhere(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(cache, "_try_lock", lambda file: False)
    patch.setattr(cache, "SECONDS_TO_WAIT", 0.2)


def no_interpreter(patch: pytest.MonkeyPatch, folder: Path) -> None:
    source_of(patch, folder, EMPTY_KERNEL)
    patch.setattr(sys, "executable", "")


def hanging_test(patch: pytest.MonkeyPatch, folder: Path) -> None:
    source_of(patch, folder, EMPTY_KERNEL)
    patch.setattr(module, "SECONDS_TO_TEST", 0.2)


def missing_function(patch: pytest.MonkeyPatch, folder: Path) -> None:
    source_of(patch, folder, EMPTY_KERNEL.replace("backward_float64", "other"))


def missing_symbol(patch: pytest.MonkeyPatch, folder: Path) -> None:
    source_of(patch, folder, EMPTY_KERNEL + 'extern "C" int absent(); int used = absent();\n')


def wrong_numbers(patch: pytest.MonkeyPatch, folder: Path) -> None:
    source_of(patch, folder, EMPTY_KERNEL)


def unknown_instruction(patch: pytest.MonkeyPatch, folder: Path) -> None:
    source_of(patch, folder, EMPTY_KERNEL.replace("pack_float64() {", "pack_float64() { __builtin_trap();"))


def other_openmp(patch: pytest.MonkeyPatch, folder: Path) -> None:
    text = EMPTY_KERNEL.replace("#include <omp.h>", 'extern "C" int omp_get_max_threads() { return 1; }')
    source_of(patch, folder, text + 'extern "C" void omp_set_num_threads(int) {}\n')


@pytest.mark.parametrize(
    ("lack", "reason"),
    [
        (unbalanced_quote, "CXX is .*'-O2.*: No closing quotation"),
        (absent_compiler, "No such file or directory"),
        (mute_compiler, "failed with exit status 1: it says nothing"),
        (broken_compiler, "x.cpp:1: error: no licence \N{REPLACEMENT CHARACTER}"),
        (crashing_compiler, "was ended by SIGSEGV"),
        (hanging_compiler, "timed out"),
        (hanging_compilation, "timed out"),
        (truncated_output, "its self-test failed: .*file too short"),
        (full_disk, "No space left on device"),
        (no_permission, "Permission denied"),
        (no_home, "Could not determine home directory"),
        (file_in_the_way, "Not a directory"),
        (folder_open_to_others, "is not this user's alone"),
        (folder_of_somebody_else, "is not this user's alone"),
        (endless_build_elsewhere, "another process has been building"),
        (no_interpreter, "no Python interpreter"),
        (hanging_test, "its self-test failed: .*timed out"),
        (missing_function, "its self-test failed: .*undefined symbol: backward_float64"),
        (missing_symbol, "its self-test failed: .*undefined symbol: absent"),
        (wrong_numbers, "its self-test failed: .*results are wrong"),
        (unknown_instruction, "its self-test failed: .*was ended by SIG(ILL|TRAP)"),
        (other_openmp, "its self-test failed: .*another OpenMP runtime than torch"),
    ],
    ids=lambda parameter: getattr(parameter, "__name__", ""),
)
def test_whatever_fails_it_is_one_warning_and_the_same_walk(
    lack: Lack, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    lack(monkeypatch, tmp_path)
    found = functools.cache(library.__wrapped__)
    monkeypatch.setattr(applicability, "library", found)
    began = time.monotonic()
    compare(CASE.model(), CASE.tokens(), None)
    assert time.monotonic() - began < 60, "it waits for what was killed"
    assert found() is None
    (shown,) = warnings()
    assert "\n" not in shown
    assert re.search(reason, shown), shown


@pytest.mark.usefixtures("untested")
def test_a_failure_is_remembered_for_an_hour(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    """So that not every process waits for it."""
    when_compiling(monkeypatch, tmp_path, f"echo >>'{tmp_path}/calls'; [ -e '{tmp_path}/repaired' ] && exec c++ \"$@\"")
    calls = tmp_path / "calls"
    for _ in range(2):
        assert library.__wrapped__() is None
    first, second = warnings()
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
        return [line.split(" in ")[0] for line in warnings()] == ["compiled the CPU kernel"]

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


@pytest.mark.parametrize("broken", ["forward_float64", "end_block_float32", "backward_bfloat16"])
def test_one_broken_function_is_found(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    name = broken.rpartition("_")[2]
    text = f'#define {broken} replaced\n#include "{REAL_KERNEL}"\n#undef {broken}\nextern "C" void {broken}() {{}}\n'
    source_of(monkeypatch, tmp_path, text)
    assert library.__wrapped__() is None
    (shown,) = warnings()
    assert f"its self-test failed: {sys.executable} failed with exit status 1: its {name} results are wrong" in shown


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


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert library.__wrapped__() is None
    assert not folder.exists()
