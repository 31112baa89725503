"""Blocks of independent labelled sequences, from a task or from given ones. B rows, T positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..tasks import IGNORE, Labelled, SequenceTask
from .blocks import TokenBlock, to_tensor


class GeneratedSequences:
    """New sequences of a task at every update. They depend only on the seed, the update and the length.

    Args:
        batch_size: sequences in an update, over all processes.
        length: gives the length T of the sequences of an update, counted from 0.
        rows: the sequences of each update that this process reads; all by default.
    """

    def __init__(
        self,
        task: SequenceTask,
        *,
        batch_size: int,
        length: Callable[[int], int],
        seed: int,
        rows: range | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.rows = range(batch_size) if rows is None else rows
        self._task, self._length, self._seed = task, length, seed

    def block(self, update: int) -> TokenBlock:
        """Return the block of `update`, counted from 0."""
        rng = np.random.default_rng((self._seed, update))
        return _block(self._task.sample(self.batch_size, self._length(update), rng), self.rows)


class GivenSequences:
    """Given sequences in random order, without repetition within an epoch. Shorter ones are padded at their end.

    The order depends only on the seed, so a resumed run needs no other state.

    Args:
        sequences: (T,) tokens and labels each.
        batch_size, seed, rows: as in `GeneratedSequences`.
        block_len: the longest sequence that is allowed.

    Raises:
        InputError: a sequence is longer.
    """

    def __init__(
        self,
        sequences: Sequence[Labelled],
        *,
        batch_size: int,
        block_len: int,
        seed: int,
        rows: range | None = None,
    ) -> None:
        longest = max(len(sequence.tokens) for sequence in sequences)
        if longest > block_len:
            raise InputError(
                f"the longest sequence has {longest} tokens, but --block-len is {block_len}; give --block-len "
                f"{longest} or more, or shorter sequences"
            )
        self.batch_size = batch_size
        self.rows = range(batch_size) if rows is None else rows
        self._sequences, self._seed = sequences, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)  # an update may span two epochs

    def block(self, update: int) -> TokenBlock:
        """Return the block of `update`, counted from 0."""
        places = np.arange(update * self.batch_size, (update + 1) * self.batch_size)
        epochs, within = np.divmod(places, len(self._sequences))
        chosen = [
            self._sequences[self._order(epoch)[place]] for epoch, place in zip(epochs.tolist(), within, strict=True)
        ]
        return _block(padded(chosen), self.rows)

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        """The order of the sequences in an epoch."""
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._sequences))


def padded(sequences: Sequence[Labelled]) -> Labelled:
    """Return sequences as (B, T) with the length of the longest: padding at the end is token 0, and not counted."""
    shape = len(sequences), max(len(sequence.tokens) for sequence in sequences)
    tokens, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence.tokens)] = sequence.tokens
        labels[row, : len(sequence.labels)] = sequence.labels
    return Labelled(tokens, labels)


def _block(sequences: Labelled, rows: range) -> TokenBlock:
    own = slice(rows.start, rows.stop)
    return TokenBlock(
        inputs=to_tensor(sequences.tokens[own]),
        targets=to_tensor(sequences.labels[own]),
        restarts=True,
        continues=False,
    )
