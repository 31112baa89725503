"""Counting letters."""

from __future__ import annotations

import numpy as np

from .task import Labelled, check_length

LETTERS = "abcd"
LARGEST = 16  # stands for all larger numbers too


class CountTask:
    """A `SequenceTask`: random letters, each labelled with how often it has occurred so far, itself included."""

    name = "count"
    words = (*LETTERS, *map(str, range(1, LARGEST)), f"{LARGEST}+")
    shortest = 1

    def sample(self, rows: int, length: int, rng: np.random.Generator) -> Labelled:
        """Return letters and counts, both (B, T)."""
        check_length(self, length)
        letters = rng.integers(len(LETTERS), size=(rows, length))
        all_counts = (letters[:, :, None] == np.arange(len(LETTERS))).cumsum(axis=1)
        counts = np.take_along_axis(all_counts, letters[:, :, None], axis=2)[:, :, 0]
        return Labelled(letters, len(LETTERS) + np.minimum(counts, LARGEST) - 1)
