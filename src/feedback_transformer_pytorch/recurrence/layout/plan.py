"""How a sequence is split for the walk: segments, strips of segments, and chunks of strips."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Queries of a strip, whose gradients of keys and values are gathered together, and rows of a chunk, whose gradients of
# parameters are. Larger ones make fewer and larger products, but need more memory.
STRIP_QUERIES = 8
CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `start + length`, which are rows `rows` of a time-major (T*B, ...) tensor."""

    index: int
    start: int
    length: int
    rows: slice

    @property
    def local(self) -> int:
        """How many local keys it has: a single token has none."""
        return self.length if self.length > 1 else 0


@dataclass(frozen=True)
class Plan:
    """A batch of B rows of T tokens in segments of S, over a window of `slots` that holds `carried` at the start.

    A window never needs more slots than there can be tokens: `slots` is the smaller of M and carried + T. Tensors
    with a row for each token are time-major, a segment's B*s rows in the order (B, s).
    """

    batch: int
    time: int
    seq_len: int
    mem_len: int
    carried: int

    @property
    def slots(self) -> int:
        return min(self.mem_len, self.carried + self.time)

    @cached_property
    def segments(self) -> list[Segment]:
        starts = range(0, self.time, self.seq_len)
        lengths = [min(self.seq_len, self.time - start) for start in starts]
        return [
            Segment(index, start, length, slice(start * self.batch, (start + length) * self.batch))
            for index, (start, length) in enumerate(zip(starts, lengths, strict=True))
        ]

    @cached_property
    def row_counts(self) -> list[int]:
        """Rows of each segment."""
        return [segment.length * self.batch for segment in self.segments]

    @cached_property
    def chunks(self) -> list[list[list[Segment]]]:
        """Chunks of strips of segments, in order; within a strip all segments are equally long."""
        whole = self.time // self.seq_len
        size = max(1, STRIP_QUERIES // self.seq_len)
        strips = [self.segments[first : min(first + size, whole)] for first in range(0, whole, size)]
        if whole < len(self.segments):
            strips.append(self.segments[whole:])
        chunks: list[list[list[Segment]]] = []
        rows = CHUNK_ROWS
        for strip in strips:
            if rows >= CHUNK_ROWS:
                chunks.append([])
                rows = 0
            chunks[-1].append(strip)
            rows += sum(self.row_counts[segment.index] for segment in strip)
        return chunks

    def filled(self, segment: Segment) -> int:
        """How many slots of the segment's window hold a token."""
        return min(self.carried + segment.start, self.slots)

    def to_rows(self, x: Tensor) -> Tensor:
        """(B, T, ...) to time-major (T*B, ...)."""
        whole = self.time // self.seq_len * self.seq_len
        rows = x[:, :whole].unflatten(1, (whole // self.seq_len, self.seq_len)).transpose(0, 1).flatten(0, 2)
        return rows if whole == self.time else torch.cat([rows, x[:, whole:].flatten(0, 1)])

    def from_rows(self, rows: Tensor) -> Tensor:
        """Time-major (T*B, ...) to (B, T, ...)."""
        whole = self.time // self.seq_len * self.seq_len
        x = (
            rows[: whole * self.batch]
            .unflatten(0, (whole // self.seq_len, self.batch, self.seq_len))
            .transpose(0, 1)
            .flatten(1, 2)
        )
        if whole == self.time:
            return x
        return torch.cat([x, rows[whole * self.batch :].unflatten(0, (self.batch, -1))], dim=1)
