import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feedback_transformer_pytorch import cli
from feedback_transformer_pytorch.training.saving.run import Run

PICTURES = {"attention-by-distance.png", "attention-map.png", "memory-mix.png", "bits.png"}


def inspect(run: Run, text: Path, out: Path, *more: str) -> int:
    return cli.main(["inspect", str(run.path), "--text", str(text), "--out", str(out), "--tokens=20", *more])


@pytest.mark.parametrize("variant", [{}, {"seq_len": 1, "kv": "per_layer", "adaptive_span": True, "carry": "state"}])
def test_the_command_writes_pictures_and_a_page(
    make_run: Callable[..., Run],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    variant: dict[str, Any],
) -> None:
    run, out = make_run(**variant), tmp_path / "looks" / "one"
    assert inspect(run, text, out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert {path.name for path in out.iterdir()} == {*PICTURES, "index.html"}
    assert [path.name for path in out.parent.iterdir()] == ["one"]


def test_a_page_needs_nothing_from_outside(make_run: Callable[..., Run], text: Path, tmp_path: Path) -> None:
    assert inspect(make_run(), text, tmp_path / "look", "--skip=20") == 0
    page = (tmp_path / "look" / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"<(?:script|img|link)[^>]*(?:src|href)=\"(?!data:)", page)
    assert page.count("</b>") == 0  # of the text; it is written as \u003c/b>
    assert "\\u003c" in page


def test_a_run_on_a_task_needs_no_text(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(task="s3", seq_len=1)
    assert cli.main(["inspect", str(run.path), "--out", str(tmp_path / "look"), "--no-page"]) == 0
    assert {path.name for path in (tmp_path / "look").iterdir()} == PICTURES


def test_a_folder_that_holds_something_is_left_alone(
    make_run: Callable[..., Run], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "full"
    out.mkdir()
    (out / "file").touch()
    assert inspect(make_run(), text, out) == 2
    assert "exists and is no empty directory" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["file"]


def test_a_baseline_is_refused(
    make_run: Callable[..., Run], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(make_run(model="parallel", seq_len=1), text, tmp_path / "look") == 2
    error = capsys.readouterr().err
    assert "holds a model of the kind 'parallel', which has no feedback to look at" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "look").exists()


def test_without_plotly_there_are_pictures(
    make_run: Callable[..., Run],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    run = make_run()
    assert inspect(run, text, tmp_path / "look") == 2
    error = capsys.readouterr().err
    assert "plotly is not installed; it comes with the 'inspect' extra" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "look").exists()
    assert inspect(run, text, tmp_path / "look", "--no-page") == 0
    assert {path.name for path in (tmp_path / "look").iterdir()} == PICTURES
