"""The compiled kernel as a good neighbour: whatever goes wrong, one line of the log and torch operations; built once by
several processes; nothing loaded that another user could have written or that did not pass its test."""

import errno
import functools
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from compilers import EMPTY_KERNEL, compiler_of, source_of, when_compiling

from cases import NUM_TOKENS, Case
from feedback_transformer_pytorch import FeedbackConfig
from feedback_transformer_pytorch.recurrence.native import applicability, cache, compiler
from feedback_transformer_pytorch.recurrence.native import library as module
from feedback_transformer_pytorch.recurrence.native.library import SWITCH, library
from test_fused import compare

CONFIG = FeedbackConfig(num_tokens=NUM_TOKENS, dim=8, depth=2, mem_len=5, seq_len=1, heads=2, dim_head=4)
CASE = Case(CONFIG, batch=2, time=20, memory_slots=0, seed=0)
REAL_KERNEL = compiler.SOURCE

pytestmark = pytest.mark.usefixtures("folder")
Lack = Callable[[pytest.MonkeyPatch, Path], None]


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
def test_whatever_fails_is_a_warning_and_the_same_walk(
    lack: Lack, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    lack(monkeypatch, tmp_path)
    found = functools.cache(library.__wrapped__)
    monkeypatch.setattr(applicability, "library", found)
    began = time.monotonic()
    compare(CASE.model(), CASE.tokens(), None)
    assert time.monotonic() - began < 60, "it waits for what was killed"
    assert found() is None
    shown = warnings()[-1]  # the one before it says that the kernel is compiled
    assert "\n" not in shown
    assert re.search(reason, shown), shown


@pytest.mark.parametrize("broken", ["forward_float64", "end_strip_float32", "backward_bfloat16"])
def test_one_broken_function_is_found(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    name = broken.rpartition("_")[2]
    text = f'#define {broken} replaced\n#include "{REAL_KERNEL}"\n#undef {broken}\nextern "C" void {broken}() {{}}\n'
    source_of(monkeypatch, tmp_path, text)
    assert library.__wrapped__() is None
    shown = warnings()[-1]  # the one before it says that the kernel is compiled
    assert f"its self-test failed: {sys.executable} failed with exit status 1: its {name} results are wrong" in shown


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert library.__wrapped__() is None
    assert not folder.exists()
