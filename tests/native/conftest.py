import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from compilers import EMPTY_KERNEL, source_of

from feedback_transformer_pytorch.recurrence.native import compiler
from feedback_transformer_pytorch.recurrence.native import library as module


@pytest.fixture
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
