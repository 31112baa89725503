"""The figures of several runs in one cell of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median


def spread(values: Sequence[float | None], show: Callable[[float], str]) -> str:
    """The median, and the lowest and the highest value in brackets if they are not the same in print; and how many of
    the runs have a value, if not all.

    Args:
        show: gives the text of a value.
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, middle, high = (show(value) for value in (min(known), median(known), max(known)))
    text = middle if low == high else f"{middle} ({low} to {high})"
    return text if len(known) == len(values) else f"{text} in {len(known)} of {len(values)}"
