"""Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927)."""

from __future__ import annotations

import re

import numpy as np

from ..errors import InputError
from .task import IGNORE, PADDING, Integers, Labelled, check_length

DEFAULT_VOCABULARY = 8192
MQAR_NAME = re.compile("mqar-([1-9][0-9]{0,8})")

_FILLER = PADDING
_POWER = 0.01  # the authors' a
_VOCABULARIES = range(6, 65537, 2)


class MqarTask:
    """A `SequenceTask`: key-value pairs, then each key a second time, labelled with its value; fillers elsewhere.

    A sequence of T tokens starts with max(2, T // 16) pairs, a key and its value in turns: 4 pairs at T = 64, 8 at 128
    and 16 at 256, as in the paper. All keys differ, and so do all values. What is left of the sequence is split into
    slots of two tokens. Each key comes first in a slot of its own; the probability of slot i = 1, 2 ... is proportional
    to i ** (a - 1) with a = 0.01, among those that are free. So most keys come soon and some come late.

    One half of the words are the filler and the keys, the other half are the values.

    Args:
        name: "mqar", with 8,192 words, or "mqar-N" with N words.

    Raises:
        InputError: N is not even, or out of range.
    """

    shortest = 8

    def __init__(self, name: str = "mqar") -> None:
        self.name = name
        self._half = _vocabulary(name) // 2
        keys = (f"k{i}" for i in range(1, self._half))
        values = (f"v{i}" for i in range(self._half))
        self.words = ("_", *keys, *values)

    def sample(self, rows: int, length: int, rng: np.random.Generator) -> Labelled:
        """Return tokens and labels, both (B, T).

        Raises:
            InputError: `length` is too short, or needs more keys than there are.
        """
        check_length(self, length)
        pairs = max(2, length // 16)
        if pairs > self._half - 1:
            raise InputError(
                f"length is {length}, which needs {pairs} keys; {self.name} has {self._half - 1}: "
                f"give at most {16 * self._half - 1}, or mqar-N with more words"
            )
        keys = 1 + _distinct(rng, rows, pairs, self._half - 1)
        values = self._half + _distinct(rng, rows, pairs, self._half)
        start = 2 * pairs
        queries = start + 2 * _slots(rng, rows, pairs, (length - start) // 2)
        tokens = np.full((rows, length), _FILLER)
        tokens[:, 0:start:2] = keys
        tokens[:, 1:start:2] = values
        np.put_along_axis(tokens, queries, keys, axis=1)
        labels = np.full((rows, length), IGNORE)
        np.put_along_axis(labels, queries, values, axis=1)
        return Labelled(tokens, labels)


def _vocabulary(name: str) -> int:
    if name == "mqar":
        return DEFAULT_VOCABULARY
    match = MQAR_NAME.fullmatch(name)
    if match is None or int(match[1]) not in _VOCABULARIES:
        allowed = f"even and {_VOCABULARIES[0]} to {_VOCABULARIES[-1]}"
        raise InputError(f"task is {name!r}; it must be mqar, or mqar-N with N words, where N is {allowed}")
    return int(match[1])


def _distinct(rng: np.random.Generator, rows: int, count: int, below: int) -> Integers:
    """Return `count` different numbers in each row, from 0 to `below` - 1, (B, count), each choice equally likely.

    The cost does not depend on `below` (Floyd's algorithm, Bentley and Floyd 1987): number i is drawn from those below
    `below` - `count` + i + 1, and is the largest of these if the row has the one that was drawn.
    """
    found = np.empty((rows, count), np.int64)
    for i in range(count):
        largest = below - count + i
        drawn = rng.integers(largest, size=rows, endpoint=True)
        is_taken = (found[:, :i] == drawn[:, None]).any(axis=1)
        found[:, i] = np.where(is_taken, largest, drawn)
    return rng.permuted(found, axis=1)  # the algorithm finds sets, in no random order


def _slots(rng: np.random.Generator, rows: int, count: int, slots: int) -> Integers:
    """Return the slots, counted from 0, of `count` keys in each row, (B, count).

    The slots that arrive first when each waits exponentially long, at a rate equal to its weight, are distributed as
    slots that are drawn by weight, one after another and without replacement.
    """
    weights = np.arange(1, slots + 1) ** (_POWER - 1)
    return (rng.standard_exponential((rows, slots)) / weights).argsort(axis=1)[:, :count]
