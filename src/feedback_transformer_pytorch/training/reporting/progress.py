"""Reports of a run on standard output: a progress bar on a terminal, otherwise a line for each interval."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from ...errors import MissingExtraError
from ..evaluation.xz import XzFigures
from ..objective import Metric
from ..options import TrainOptions
from .meter import Interval

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
except ImportError as error:
    raise MissingExtraError("rich", "train") from error


class _Console(Console):
    """A console that falls silent when nobody reads it any more, as after Ctrl-C in `train | tee`.

    Training goes on, and ends as it always does.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # nor may Python's own end write there


class TrainingProgress:
    """Reports a run on standard output. A context manager that shows the bar.

    Args:
        quiet: print nothing.
    """

    def __init__(self, options: TrainOptions, *, quiet: bool = False) -> None:
        # The model's text may look like markup, and a pipe has no line width.
        self.console = _Console(markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=quiet)
        self._total = options.max_updates
        self._bar = Progress(
            TextColumn("{task.fields[unit]}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=self._total, unit="update")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(text)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[int, int | None], None]]:
        """Shows the reading of text; yields a function to call with the bytes read and all bytes (None if unknown)."""
        task = self._bar.add_task("", total=None, unit="bytes read")
        try:
            yield lambda done, total: self._bar.update(task, completed=done, total=total)
        finally:
            self._bar.remove_task(task)

    def advance(self, update: int) -> None:
        """Shows the number of updates done."""
        self._bar.update(self._task, completed=update)

    def interval(self, interval: Interval, metrics: Sequence[Metric]) -> None:
        """Shows the averages of an interval."""
        text = interval.text(metrics)
        if self.console.is_terminal:
            self._bar.update(self._task, description=text)
        else:
            self.say(f"update {interval.update}/{self._total}  {text}")

    def validation(self, update: int, measured: str, reference: XzFigures | None, sample: str) -> None:
        """Prints what was measured on held-out data, the reference on the same data, and the model's sample."""
        beside = "" if reference is None else f"  ({reference})"
        self.say(f"update {update}/{self._total}  held-out {measured}{beside}")
        if sample:
            self.say("sample: " + "\n        ".join(printable(sample).strip().splitlines()))


def printable(text: str) -> str:
    """The text without characters that control a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
