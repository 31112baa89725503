"""Relative position: what the distance between a query and a key adds to their attention score.

A position is a module whose call returns a list of terms; the terms are added to the scores. A new position is a module
with this call and an entry in `POSITIONS`; its name is then a value of `position` in the configuration.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .errors import InputError

NUM_BUCKETS = 32
MAX_DISTANCE = 128


def bucket(distance: Tensor) -> Tensor:
    """T5's causal buckets (Raffel et al. 2020, section 2.1): exact up to 15, then logarithmic up to 128.

    Args:
        distance: whole numbers >= 0, any shape.
    """
    exact = NUM_BUCKETS // 2
    # In float32, as T5 and version 0.0.11 compute it: the last digit decides which bucket a boundary falls into.
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    logarithmic = (exact + (ratio * (NUM_BUCKETS - exact)).long()).clamp(max=NUM_BUCKETS - 1)
    return torch.where(distance < exact, distance, logarithmic)


def bucket_starts() -> Tensor:
    """(NUM_BUCKETS + 1,), on the CPU: the first distance of each bucket, and a number beyond all distances."""
    buckets = bucket(torch.arange(MAX_DISTANCE + 1, device="cpu"))
    starts = torch.searchsorted(buckets, torch.arange(NUM_BUCKETS, device="cpu"))
    return torch.cat([starts, torch.tensor([2**62], device="cpu")])


class ScoreTerm(Protocol):
    """Something that is added to the scores, all of whose tensors may have gradients."""

    def scores(self, q: Tensor, distance: Tensor) -> Tensor:
        """What is added to the scores of queries (B, S, G, H/G, E), which are scaled, at distances (S, n) or (B, S, n).

        Returns:
            A tensor that broadcasts to (B, G, H/G, S, n).
        """


class DistanceBias(NamedTuple):
    """A number for each distance.

    Attributes:
        bias: (H, distances).
    """

    bias: Tensor

    def scores(self, q: Tensor, distance: Tensor) -> Tensor:
        by_head = self.bias[:, distance].unflatten(0, q.shape[2:4])  # (G, H/G, S, n) or (G, H/G, B, S, n)
        return by_head if distance.ndim == 2 else by_head.movedim(2, 0)


class DistanceVectors(NamedTuple):
    """The product of the query with a vector for each distance (Shaw et al. 2018, arXiv 1803.02155).

    Attributes:
        table: (N, E), the vectors.
        row: (distances,), the row of the table for each distance.
    """

    table: Tensor
    row: Tensor

    def scores(self, q: Tensor, distance: Tensor) -> Tensor:
        vectors = self.table[self.row[distance]]  # (S, n, E) or (B, S, n, E)
        axes = "sne" if distance.ndim == 2 else "bsne"
        return torch.einsum(f"bsgre,{axes}->bgrsn", q, vectors)


class Position(nn.Module):
    """What the distance between query and key adds to a score; one for all layers.

    Attributes:
        counts_memory: whether distances are true ones; without, the memory does not count (see `distances`).
    """

    counts_memory: ClassVar[bool] = True

    def __init__(self, *, heads: int, dim_head: int, distances: int) -> None:
        """Sets up for H heads of width E and distances below `distances`."""
        super().__init__()

    def forward(self, distances: int) -> list[ScoreTerm]:
        """What distances 0 up to but not including `distances` add."""
        raise NotImplementedError


class BucketBias(Position):
    """A learned bias of each head for each T5 bucket ("t5")."""

    def __init__(self, *, heads: int, dim_head: int, distances: int) -> None:
        super().__init__(heads=heads, dim_head=dim_head, distances=distances)
        self.bias = nn.Embedding(NUM_BUCKETS, heads)

    def forward(self, distances: int) -> list[ScoreTerm]:
        steps = torch.arange(distances, device=self.bias.weight.device)
        return [DistanceBias(self.bias(bucket(steps)).transpose(0, 1))]


class LegacyBias(BucketBias):
    """The same over the distances of version 0.0.11 ("legacy")."""

    counts_memory = False


class BucketVectors(Position):
    """A learned vector for each T5 bucket, which the query is multiplied with ("relative").

    As in Shaw et al. 2018, with T5's buckets in place of clipped distances. So a query can ask for a distance.
    """

    def __init__(self, *, heads: int, dim_head: int, distances: int) -> None:
        super().__init__(heads=heads, dim_head=dim_head, distances=distances)
        self.vectors = nn.Embedding(NUM_BUCKETS, dim_head)  # from N(0, 1): from N(0, 0.02) it learns later

    def forward(self, distances: int) -> list[ScoreTerm]:
        steps = torch.arange(distances, device=self.vectors.weight.device)
        return [DistanceVectors(self.vectors.weight, bucket(steps))]


class LearnedVectors(Position):
    """A learned vector for each distance, which the query is multiplied with ("learned", the paper authors')."""

    def __init__(self, *, heads: int, dim_head: int, distances: int) -> None:
        super().__init__(heads=heads, dim_head=dim_head, distances=distances)
        self.vectors = nn.Embedding(distances, dim_head)

    @property
    def known_distances(self) -> int:
        """How many distances have a vector."""
        return self.vectors.num_embeddings

    def forward(self, distances: int) -> list[ScoreTerm]:
        known = self.known_distances
        if distances > known:
            raise InputError(
                f"position 'learned' has vectors for {known} distances, mem_len + seq_len of the model as it was "
                f"built; {distances} are asked for: keep mem_len + seq_len at {known} or below"
            )
        return [DistanceVectors(self.vectors.weight, torch.arange(distances, device=self.vectors.weight.device))]


POSITIONS: dict[str, type[Position]] = {
    "t5": BucketBias,
    "relative": BucketVectors,
    "learned": LearnedVectors,
    "legacy": LegacyBias,
}


def gather_rows(products: Tensor, rows: Tensor) -> Tensor:
    """Products of queries with the vectors of a table, spread over keys.

    Args:
        products: (..., Q, N).
        rows: (Q, n), the row of the table for each query's distance to each key.

    Returns:
        (..., Q, n).
    """
    return products.gather(-1, rows.expand(*products.shape[:-1], -1))


def distances(counts_memory: bool, query: Tensor, key: Tensor, memory_count: int | Tensor) -> Tensor:
    """How far each key lies behind each query, never negative.

    Args:
        counts_memory: True: the true distance. False: version 0.0.11 counts queries from 0 although the memory precedes
            them, so each distance is too short by the number of memory slots seen.
        query: (S, 1) places in the segment, from 0.
        key: (1, n) places relative to the segment's start; the memory's are negative.
        memory_count: a number or (B, 1, 1), how many memory slots are seen.
    """
    distance = query - key
    if not counts_memory:
        distance = distance - memory_count
    return distance.clamp(min=0)
