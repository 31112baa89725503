import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from feedback_transformer_pytorch.training.evaluation.xz import XzFigures
from feedback_transformer_pytorch.training.objective import BITS_PER_BYTE
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.reporting import progress as module
from feedback_transformer_pytorch.training.reporting.meter import Interval
from feedback_transformer_pytorch.training.reporting.progress import TrainingProgress, printable

INTERVAL = Interval(
    update=5,
    tokens=320,
    seconds=2.5,
    loss=1.5,
    metrics={"bits_per_byte": 2.164},
    grad_norm=0.3,
    lr=0.001,
    block_len=16,
    tokens_per_second=12345.6,
    peak_memory_bytes=2**30,
    skipped=0,
    seconds_left=100,
)


def test_without_a_terminal_each_report_is_a_line(options: TrainOptions, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(options) as progress:
        progress.advance(5)
        progress.interval(INTERVAL, [BITS_PER_BYTE])
        progress.validation(5, "2.100 bits/byte", XzFigures(2.0, 1.4), "a [bold]sample[/bold] :smile:\n\x1b[31m")
    assert capsys.readouterr().out.splitlines() == [
        "update 5/6  loss 1.500  2.164 bits/byte  12,346 tokens/s  0:01:40 left",
        "update 5/6  held-out 2.100 bits/byte  (xz -9: 2.000 alone, 1.400 after the training text)",
        "sample: a [bold]sample[/bold] :smile:",
        "        \ufffd[31m",
    ]


def test_on_a_terminal_there_is_a_bar(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()

    def console(**settings: Any) -> Console:
        return Console(**settings, file=terminal, force_terminal=True, width=120, legacy_windows=False)

    monkeypatch.setattr(module, "_Console", console)
    with TrainingProgress(options) as progress:
        progress.advance(5)
        progress.interval(INTERVAL, [BITS_PER_BYTE])
    assert "5/6" in terminal.getvalue()
    assert "12,346 tokens/s  0:01:40 left" in terminal.getvalue()


def test_a_bar_counts_the_bytes_that_are_read(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()

    def console(**settings: Any) -> Console:
        return Console(**settings, file=terminal, force_terminal=True, width=120, legacy_windows=False)

    monkeypatch.setattr(module, "_Console", console)
    with TrainingProgress(options) as progress, progress.reading() as on_progress:
        on_progress(617, 1234)
        while not re.search("bytes read .*617/1234", terminal.getvalue()):  # it is drawn ten times a second
            time.sleep(0.01)


def test_a_process_that_is_not_the_main_one_is_quiet(options: TrainOptions, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(options, quiet=True) as progress, progress.reading() as on_progress:
        on_progress(1, 2)
        progress.say("said")
        progress.interval(INTERVAL, [BITS_PER_BYTE])
    assert capsys.readouterr() == ("", "")


def test_a_training_text_beyond_the_reach_of_xz_is_said(
    options: TrainOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    with TrainingProgress(options) as progress:
        progress.validation(1, "2.100 bits/byte", XzFigures(2.0, None), "")
    assert "2.000 alone; the training text is longer than xz looks back" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "shown"), [("a\tb\nc", "a\tb\nc"), ("\x1b[2J\x00é", "\ufffd[2J\ufffdé")])
def test_nothing_steers_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
