"""The tokens of every update: parallel streams of a text, in blocks, whose lengths may follow a curriculum.

Axis letters: B streams (rows of the batch), T tokens in a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError
from .blocks import TokenBlock, to_tensor
from .tokenizer import Tokens


class Stage(NamedTuple):
    """A part of training: from update `first` on, counted from 0, blocks have `block_len` tokens."""

    first: int
    block_len: int


class Streams:
    """A text split into contiguous streams of equal length, which are read in parallel, in blocks.

    The tokens of a block depend only on the number of the update, so a resumed run needs no other state. After an
    epoch all streams start again at their beginning. Tokens at the end of a stream that do not fill a block are never
    read. Neither are up to `batch_size - 1` tokens at the end of the text.

    Args:
        tokens: (N,) integers; of a `np.memmap`, only the parts that a block needs are read.
        labels: (N,) integers, what is to be predicted at each token; by default, the token that follows.
        batch_size: number of streams, over all processes.
        stages: the block length T of every update (see `stages`).
        rows: the B streams that this process reads; all by default.
        documents: (K,) sorted indices of `tokens` where documents start, if the memory is to be emptied there.

    Raises:
        InputError: the text is too short for one update, or an argument is out of range.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        batch_size: int,
        stages: Sequence[Stage],
        rows: range | None = None,
        documents: npt.NDArray[np.int64] | None = None,
        labels: npt.NDArray[np.int64] | None = None,
    ) -> None:
        _check_tokens(tokens)
        longest = max(stage.block_len for stage in stages)
        if batch_size < 1 or min(stage.block_len for stage in stages) < 1:
            raise InputError(f"batch_size is {batch_size} and block_len {longest}; give 1 or more for each")
        rows = range(batch_size) if rows is None else rows
        if not rows or rows.step != 1 or rows.start < 0 or rows.stop > batch_size:
            raise InputError(
                f"rows is {rows} of {batch_size} streams; give every process at least one of range(0, {batch_size}), "
                "and consecutive ones"
            )
        needed = batch_size * (longest + 1)
        if len(tokens) < needed:
            raise InputError(
                f"the text has {len(tokens)} tokens, but one update takes {needed} "
                f"(batch size {batch_size} x (block length {longest} + 1)); "
                "give a smaller --batch-size or --block-len, or more text"
            )
        self.rows, self.batch_size = rows, batch_size
        self._stages, self._documents = list(stages), documents
        self._stream_len = len(tokens) // batch_size
        self._streams = self._split(tokens)
        self._targets = self._streams[:, 1:] if labels is None else self._split(labels)
        self._starts = [0]  # where in the streams each stage starts
        for stage in stages[1:]:
            start, block_len = self._place(stage.first - 1)
            self._starts.append(start + block_len)

    def block(self, update: int) -> TokenBlock:
        """Return the block of `update`, counted from 0."""
        start, block_len = self._place(update)
        places, own = slice(start, start + block_len), slice(self.rows.start, self.rows.stop)
        return TokenBlock(
            inputs=to_tensor(self._streams[own, places]),
            targets=to_tensor(self._targets[own, places]),
            restarts=start == 0,
            reset=self._reset(start, block_len),
        )

    def _split(self, values: Tokens) -> Tokens:
        return values[: self.batch_size * self._stream_len].reshape(self.batch_size, self._stream_len)

    def _place(self, update: int) -> tuple[int, int]:
        """Where in the streams the block of `update` starts, and its length."""
        at = max(index for index in range(len(self._starts)) if self._stages[index].first <= update)
        first, block_len = self._stages[at]
        block = update - first
        left = (
            self._stream_len - 1 - self._starts[at]
        ) // block_len  # blocks left in the epoch in which the stage starts
        if block < left:
            return self._starts[at] + block * block_len, block_len
        per_epoch = (self._stream_len - 1) // block_len
        return (block - left) % per_epoch * block_len, block_len

    def _reset(self, start: int, block_len: int) -> Tensor | None:
        if self._documents is None:
            return None
        reset = torch.zeros(len(self.rows), block_len, dtype=torch.bool)
        for row, stream in enumerate(self.rows):
            first = stream * self._stream_len + start
            found = slice(*np.searchsorted(self._documents, (first, first + block_len)))
            reset[row, torch.from_numpy(self._documents[found] - first)] = True
        return reset if reset.any() else None


def stages(block_len: int, first_block_len: int | None = None, curriculum_updates: int = 0) -> list[Stage]:
    """The stages of a run that ends with blocks of `block_len`.

    With `first_block_len`, the first stage has blocks of that length, and every other stage but the last blocks of
    twice the length before. These stages split the first `curriculum_updates` evenly.

    Raises:
        InputError: `first_block_len` is not below `block_len`, or there are fewer updates than stages.
    """
    if first_block_len is None:
        return [Stage(0, block_len)]
    if not 1 <= first_block_len < block_len:
        raise InputError(f"--first-block-len is {first_block_len}; it must be below --block-len {block_len}")
    lengths = [first_block_len]
    while 2 * lengths[-1] < block_len:
        lengths.append(2 * lengths[-1])
    if curriculum_updates < len(lengths):
        raise InputError(
            f"--curriculum-updates is {curriculum_updates}; to double blocks from --first-block-len {first_block_len} "
            f"to --block-len {block_len} it must be at least {len(lengths)}"
        )
    found = [Stage(curriculum_updates * place // len(lengths), length) for place, length in enumerate(lengths)]
    return [*found, Stage(curriculum_updates, block_len)]


def block_len_at(stages: Sequence[Stage], update: int) -> int:
    """The block length of `update`, counted from 0."""
    return max(stage for stage in stages if stage.first <= update).block_len


def _check_tokens(tokens: Tokens) -> None:
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(f"tokens have shape {tokens.shape} and type {tokens.dtype}; give integers in one dimension")
