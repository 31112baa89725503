"""Sequences that grow as the model masters them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..objective import ACCURACY_LAST

RATE = 0.1  # weight of the newest update in the running accuracy


class Mastery:
    """A curriculum: the sequences grow after each update at which the running accuracy of their last labels is at least
    a threshold. The running accuracy goes on when they grow, so they may grow at several updates in a row.

    Attributes:
        length: T, the length of the sequences of the next update.

    Args:
        first, longest: the length at the start, and where it ends.
        threshold: the accuracy from which on sequences grow.
        growth: the factor by which they do; they grow by at least `multiple_of`.
        multiple_of: every length is a multiple of it.
    """

    def __init__(self, *, first: int, longest: int, threshold: float, growth: float, multiple_of: int = 1) -> None:
        self.length = first
        self._longest, self._threshold = longest, threshold
        self._growth, self._multiple_of = growth, multiple_of
        self._accuracy = 0.0

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of an update, of which ACCURACY_LAST counts."""
        self._accuracy += RATE * (metrics[ACCURACY_LAST.name] - self._accuracy)
        if self._accuracy >= self._threshold:
            steps = max(
                self.length // self._multiple_of + 1, math.floor(self.length * self._growth / self._multiple_of)
            )
            self.length = min(self._longest, steps * self._multiple_of)

    def state(self) -> dict[str, Any]:
        """The state as plain values, for `restore`."""
        return {"length": self.length, "accuracy": self._accuracy}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from the state of another curriculum."""
        self.length, self._accuracy = int(state["length"]), float(state["accuracy"])
