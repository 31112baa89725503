"""Copying letters, in the same or in the opposite order."""

from __future__ import annotations

import numpy as np

from .task import IGNORE, PADDING, Labelled, check_length

BLANK, SEPARATOR = PADDING, 1
LETTERS = "abcdefgh"
_FIRST_LETTER = 2


class CopyTask:
    """A `SequenceTask`: n letters, a separator and n blanks, which are labelled with the letters.

    n is uniform from 1 to the largest number for which the sequence has room, every letter equally likely. Padding and
    blanks are the same token.

    Args:
        reverse: the last letter comes first; the task's name is then "reverse" instead of "copy".
    """

    words = ("_", "|", *LETTERS)
    shortest = 3

    def __init__(self, *, reverse: bool) -> None:
        self.name = "reverse" if reverse else "copy"
        self._reverse = reverse

    def sample(self, rows: int, length: int, rng: np.random.Generator) -> Labelled:
        """Return tokens and labels, both (B, T)."""
        check_length(self, length)
        most = (length - 1) // 2
        n = rng.integers(1, most, size=(rows, 1), endpoint=True)
        letters = _FIRST_LETTER + rng.integers(len(LETTERS), size=(rows, most))
        tokens = np.full((rows, length), BLANK)
        tokens[:, :most] = np.where(np.arange(most) < n, letters, BLANK)
        np.put_along_axis(tokens, n, SEPARATOR, axis=1)
        place = np.arange(length) - n - 1  # counted from the first blank
        source = n - 1 - place if self._reverse else place
        is_asked = (place >= 0) & (place < n)
        answers = np.take_along_axis(letters, np.where(is_asked, source, 0), axis=1)
        return Labelled(tokens, np.where(is_asked, answers, IGNORE))
