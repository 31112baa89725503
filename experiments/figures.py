"""The figures of a table's cells, from the results of its rows.

A column is a mapping in table.yaml: `name`, and what it shows:
  parameters, seconds, updates or lr: of the run
  at, with length T and test NAME: the accuracy of a test at positions from 3T/4 to T
  reach, with test NAME: the last position up to which accuracy is REACHED at every position
  NAME, with test NAME: a figure of a test
  validation: the metric at the end of training
  within, with row ROW: the metric at the last validation within the median time of ROW of the same group
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rows import Row

Column = Mapping[str, Any]
REACHED = 0.99
RUN_FIGURES = {"parameters", "seconds", "updates", "lr"}


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
    def machine(self) -> str:
        """Where it was measured."""
        environment = self.found["environment"]
        return f"{environment['cpu']}, torch {environment['torch']}"


def cell(column: Column, result: Result, others: Sequence[Result]) -> str:
    """The text of a cell: a figure of each run, summed up.

    Args:
        others: the results of the same group, by which `within` finds its row.
    """
    return spread([value(column, run, others) for run in result.runs], column.get("format", "number"))


def value(column: Column, run: Mapping[str, Any], others: Sequence[Result]) -> float | None:
    """The figure of one run; None if it was not measured."""
    show = column["show"]
    if show in RUN_FIGURES:
        return float(run[show])
    if show == "validation":
        return float(run["curve"][-1][2])
    if show == "within":
        limit = next((median(r["seconds"] for r in o.runs) for o in others if o.row.name.endswith(column["row"])), None)
        reached = [point[2] for point in run["curve"] if limit is not None and point[1] <= 1.02 * limit]
        return float(reached[-1]) if reached else None
    test = run["test"].get(column["test"])
    if test is None:
        return None
    if show == "at":
        return accuracy_at(test["by_position"], column["length"])
    if show == "reach":
        return float(reach(test["by_position"]))
    return float(test[show])


def accuracy_at(by_position: Sequence[float | None], length: int) -> float | None:
    """The mean accuracy at positions from 3T/4 to T, counted from 1."""
    shares = [share for share in by_position[3 * length // 4 : length] if share is not None]
    return sum(shares) / len(shares) if shares else None


def reach(by_position: Sequence[float | None]) -> int:
    """The last position, counted from 1, up to which no accuracy is below REACHED."""
    missed = (place for place, share in enumerate(by_position) if share is not None and share < REACHED)
    return next(missed, len(by_position))


def spread(values: Sequence[float | None], form: str) -> str:
    """The median, and the lowest and the highest value in brackets if they are not the same in print."""
    known = [found for found in values if found is not None]
    if not known:
        return "-"
    low, middle, high = (formatted(found, form) for found in (min(known), median(known), max(known)))
    return middle if low == high else f"{middle} ({low} to {high})"


def formatted(found: float, form: str) -> str:
    """As a percentage, with three decimals, as a whole number, or with three digits."""
    if form == "percent":
        return f"{100 * found:.1f}"
    if form == "bits":
        return f"{found:.3f}"
    return f"{found:,.0f}" if abs(found) >= 100 else f"{found:.3g}"
