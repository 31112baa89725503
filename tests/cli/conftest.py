"""A text, a run that was trained on it, and a check of refusals."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import snapshot, train, write_text

from feedback_transformer_pytorch import cli


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    write_text(path)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder / "text.txt")
    train(folder / "text.txt", "--out", folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of four updates, to do anything with."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Checks that a command is refused with one line that holds `message`, and changes nothing."""

    def check(message: str, *arguments: str | Path) -> None:
        before = snapshot(tmp_path)
        assert cli.main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("feedback-transformer: ")
        assert message in captured.err
        assert snapshot(tmp_path) == before

    return check
