"""The tokens of one update, and what is to be predicted at each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .tokenizer import Tokens


@dataclass(frozen=True)
class TokenBlock:
    """The tokens of one update, in rows that are read in parallel.

    Attributes:
        inputs: (B, T) int64.
        targets: (B, T) int64, what is to be predicted at each input: in text, the token that follows.
        restarts: the rows start afresh, so the memory after the block before must be dropped.
        reset: (B, T) bool, True where a document starts; None if none starts.
        continues: the next block may continue the rows, so it needs the memory after this one.
    """

    inputs: Tensor
    targets: Tensor
    restarts: bool
    reset: Tensor | None = None
    continues: bool = True

    def groups(self, count: int) -> list[TokenBlock]:
        """Split the block into `count` parts with the same number of rows, in order."""
        resets = [None] * count if self.reset is None else self.reset.chunk(count)
        return [
            TokenBlock(
                inputs,
                targets,
                self.restarts,
                None if reset is None or not reset.any() else reset,
                self.continues,
            )
            for inputs, targets, reset in zip(self.inputs.chunk(count), self.targets.chunk(count), resets, strict=True)
        ]


class Blocks(Protocol):
    """The block of each update."""

    @property
    def batch_size(self) -> int:
        """Number of rows, over all processes."""

    @property
    def rows(self) -> range:
        """Those of them that this process reads."""

    def block(self, update: int) -> TokenBlock:
        """Return the block of `update`, counted from 0."""


def to_tensor(tokens: Tokens) -> Tensor:
    """Return `tokens` as int64, in memory of their own."""
    return torch.from_numpy(tokens.astype(np.int64, order="C", subok=False))
