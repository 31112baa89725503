"""The figures of a table's cells, from the results of its rows.

A column is a mapping in table.yaml: its `name`, the `format` of its numbers, and what it shows:
  parameters, seconds, updates, tokens, block_len or ms (milliseconds per update): of the run
  validation: the metric at the end of training
  at, with a `length` T: the accuracy at the last quarter of the positions up to T, of the test of the shortest
    sequences that are long enough
  reach: the last position up to which accuracy is REACHED at every position
  any other name, with a `test`: that figure of the test
A test whose name begins with a number has sequences of that length. A row with several windows has several tests of a
length, such as "512" and "512, M 512"; the better one counts, the one that is more often right.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rows import Row

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from summary import spread

Column = Mapping[str, Any]
Run = Mapping[str, Any]
REACHED = 0.9
ENOUGH = 50  # labels at a position, for `reach`
RUN_FIGURES = {"parameters", "seconds", "updates", "tokens", "block_len"}
LONGEST = "512"


@dataclass(frozen=True)
class Result:
    """A row and what its runs found."""

    row: Row
    found: Mapping[str, Any]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """One entry for each seed."""
        return self.found["runs"]

    @property
    def machines(self) -> list[str]:
        """Where its runs were measured."""
        return [_machine(run["environment"]) for run in self.runs]

    def values(self, column: Column) -> list[float]:
        """The figures of the runs that have one."""
        return [found for run in self.runs if (found := value(column, run)) is not None]


def _machine(environment: Mapping[str, Any]) -> str:
    """Processor and torch. The first results have no model of the processor."""
    model = environment.get("cpu_model")
    known = "" if model is None else f" (family {environment['cpu_family']}, model {model})"
    return f"{environment['cpu']}{known}, torch {environment['torch']}"


def core_seconds(result: Result) -> float:
    """The time of all runs of a row.

    Those that diverged, and those that only chose the learning rate, are taken to have lasted as long as the others.
    """
    seconds = result.values({"show": "seconds"})
    return fmean(seconds or [0.0]) * (len(result.runs) + len(result.row.lr) - 1)


def cell(column: Column, result: Result) -> str:
    """The text of a cell: a figure of each run, summed up."""
    form = column.get("format", "number")
    return spread([value(column, run) for run in result.runs], lambda found: formatted(found, form))


def value(column: Column, run: Run) -> float | None:
    """The figure of one run; None if it was not measured, or if training diverged."""
    show = column["show"]
    if "diverged" in run:
        return None
    if show in RUN_FIGURES:
        return float(run[show])
    if show == "ms":
        return 1000 * run["seconds"] / run["updates"]
    if show == "validation":
        return float(run["curve"][-1][1])
    if show == "at":
        return accuracy_up_to(run, column["length"])
    if show == "reach":
        test = better_test(run, LONGEST)
        dense = test is not None and test["labels"] >= ENOUGH * len(test["by_position"])
        return float(reach(test["by_position"])) if test is not None and dense else None
    test = run["test"].get(column["test"])
    return None if test is None else float(test[show])


def accuracy_up_to(run: Run, length: int) -> float | None:
    """The accuracy at the last quarter of the positions up to T; None if no test has sequences of T tokens."""
    lengths = {int(name.partition(",")[0]) for name in run["test"] if name[0].isdigit()}
    enough = [tested for tested in lengths if tested >= length]
    test = better_test(run, str(min(enough))) if enough else None
    return None if test is None else accuracy_at(test["by_position"], length)


def better_test(run: Run, name: str) -> dict[str, Any] | None:
    """The test of this name, or the better one of those whose names begin with it; None if there is none."""
    tests = [test for given, test in run["test"].items() if given.partition(",")[0] == name]
    return max(tests, key=lambda test: test["accuracy"], default=None)


def accuracy_at(by_position: Sequence[float | None], length: int) -> float | None:
    """The mean over the last quarter of the positions up to T, whatever the number of labels at each."""
    shares = [share for share in by_position[3 * length // 4 : length] if share is not None]
    return sum(shares) / len(shares) if shares else None


def reach(by_position: Sequence[float | None]) -> int:
    """The last position, counted from 1, up to which no accuracy is below REACHED."""
    missed = (place for place, share in enumerate(by_position) if share is not None and share < REACHED)
    return next(missed, len(by_position))


def formatted(found: float, form: str) -> str:
    """As a percentage, in millions, with three decimals, as a whole number, or with three digits."""
    if form == "percent":
        return f"{100 * found:.1f}"
    if form == "millions":
        return f"{found / 1e6:.1f}"
    if form == "bits":
        return f"{found:.3f}"
    return f"{found:,.0f}" if abs(found) >= 100 else f"{found:.3g}"
