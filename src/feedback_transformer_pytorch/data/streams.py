"""Token streams for truncated backpropagation through time with a memory that is carried from block to block.

Axis letters: B streams (rows of the batch), T tokens in a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError

Tokens = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Block:
    """The tokens of one update.

    Attributes:
        inputs: (B, T) int64.
        targets: (B, T) int64, the token after each input.
        restarts: the block does not continue the one before it; a memory carried from there must be dropped.
    """

    inputs: Tensor
    targets: Tensor
    restarts: bool


class Streams:
    """A text cut into equally long contiguous streams, read side by side in blocks.

    What a block holds is a function of the update number alone, so that number is all that a resumed run needs. After
    an epoch all streams begin again at their start. Fewer than `block_len` tokens at the end of each stream, and
    fewer than `batch_size` at the end of the text, fill no block and are never read.

    Args:
        tokens: (N,) integers; a `np.memmap` is read only where a block needs it.
        batch_size: number of streams, over all processes.
        block_len: T, tokens that each stream advances in an update.
        rows: the streams that this process reads, B of them; all by default.

    Attributes:
        updates_per_epoch: number of blocks from the start of the streams to their end.

    Raises:
        InputError: the text is too short for one update, or an argument is out of range.
    """

    def __init__(self, tokens: Tokens, *, batch_size: int, block_len: int, rows: range | None = None) -> None:
        _check_tokens(tokens)
        if batch_size < 1 or block_len < 1:
            raise InputError(f"batch_size is {batch_size} and block_len {block_len}; give 1 or more for each")
        rows = range(batch_size) if rows is None else rows
        if not rows or rows.step != 1 or rows.start < 0 or rows.stop > batch_size:
            raise InputError(
                f"rows is {rows} of {batch_size} streams; give every process consecutive streams, one at least, "
                f"within range(0, {batch_size})"
            )
        needed = batch_size * (block_len + 1)
        if len(tokens) < needed:
            raise InputError(
                f"the text has {len(tokens)} tokens, but one update takes {needed} "
                f"(batch size {batch_size} x (block length {block_len} + 1)); "
                "give a smaller --batch-size or --block-len, or more text"
            )
        stream_len = len(tokens) // batch_size
        self.updates_per_epoch = (stream_len - 1) // block_len
        self._block_len = block_len
        self._streams = tokens[: batch_size * stream_len].reshape(batch_size, stream_len)[rows.start : rows.stop]

    def block(self, update: int) -> Block:
        """Return the block of `update`, counted from 0.

        As the k-th of its epoch it reads tokens k*T to k*T + T, the last one as a target only, of each stream.
        """
        k = update % self.updates_per_epoch
        start = k * self._block_len
        return _block(self._streams[:, start : start + self._block_len + 1], restarts=k == 0)


def consecutive_blocks(tokens: Tokens, block_len: int) -> Iterator[Block]:
    """Read one text from start to end in blocks of one row, so that every token but the first is a target once.

    Args:
        tokens: (N,) integers.
        block_len: T; the last block has what is left, one token at least.

    Raises:
        InputError: there are fewer than two tokens, or `block_len` is less than one.
    """
    _check_tokens(tokens)
    if block_len < 1:
        raise InputError(f"block_len is {block_len}; give 1 or more")
    if len(tokens) < 2:
        raise InputError(f"the text has {len(tokens)} tokens, but to predict one takes 2; give more text")
    return (
        _block(tokens[None, start : start + block_len + 1], restarts=start == 0)
        for start in range(0, len(tokens) - 1, block_len)
    )


def _check_tokens(tokens: Tokens) -> None:
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(f"tokens have shape {tokens.shape} and type {tokens.dtype}; give integers in one dimension")


def _block(window: Tokens, *, restarts: bool) -> Block:
    """Split a (B, T + 1) window into inputs and targets, each in memory of its own."""
    return Block(_to_tensor(window[:, :-1]), _to_tensor(window[:, 1:]), restarts)


def _to_tensor(tokens: Tokens) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64, order="C", subok=False))
