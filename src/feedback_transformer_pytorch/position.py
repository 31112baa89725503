"""Relative position: what the distance between query and key adds to an attention score."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import FeedbackConfig, Position

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
    """(NUM_BUCKETS + 1,): the first distance of each bucket, and a number beyond all distances."""
    starts = torch.searchsorted(bucket(torch.arange(MAX_DISTANCE + 1)), torch.arange(NUM_BUCKETS))
    return torch.cat([starts, torch.tensor([2**62])])


class ByDistance(NamedTuple):
    """What each distance 0, 1, ... adds to the score of a query (E,): bias + query . vector / sqrt(E).

    Attributes:
        bias: (H, distances), or (1, distances) where it is the same for all heads.
        vectors: (distances, E); None for none.
    """

    bias: Tensor
    vectors: Tensor | None


class BucketBias(nn.Module):
    """A learned bias of each head for each T5 bucket, shared by all layers (positions "t5" and "legacy")."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.bias = nn.Embedding(NUM_BUCKETS, heads)

    def forward(self, distances: int) -> ByDistance:
        """What distances 0 up to but not including `distances` add."""
        steps = torch.arange(distances, device=self.bias.weight.device)
        return ByDistance(self.bias(bucket(steps)).transpose(0, 1), None)


class BucketVectors(nn.Module):
    """A learned vector for each T5 bucket, shared by all layers and heads (position "relative").

    The query times the vector is added to its product with the key, as in Shaw et al. 2018 (arXiv 1803.02155), with
    T5's buckets in place of clipped distances. So a query can ask for a distance.
    """

    def __init__(self, dim_head: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(NUM_BUCKETS, dim_head)  # from N(0, 1): from N(0, 0.02) it learns later

    def forward(self, distances: int) -> ByDistance:
        """What distances 0 up to but not including `distances` add."""
        table = self.vectors.weight
        steps = torch.arange(distances, device=table.device)
        return ByDistance(table.new_zeros(1, distances), self.vectors(bucket(steps)))


def build_position(config: FeedbackConfig) -> BucketBias | BucketVectors:
    """The module of `config.position`."""
    return BucketVectors(config.dim_head) if config.position == "relative" else BucketBias(config.heads)


def gather_buckets(products: Tensor, buckets: Tensor) -> Tensor:
    """Products of queries and bucket vectors, spread over keys.

    Args:
        products: (..., Q, buckets).
        buckets: (Q, n), the bucket of each query's distance to each key.

    Returns:
        (..., Q, n).
    """
    return products.gather(-1, buckets.expand(*products.shape[:-1], -1))


def distances(position: Position, query: Tensor, key: Tensor, memory_count: int | Tensor) -> Tensor:
    """How far each key lies behind each query, never negative.

    Args:
        position: "t5", "relative": the true distance. "legacy": version 0.0.11 counts queries from 0 although the
            memory precedes them, so each distance is too short by the number of memory slots seen.
        query: (S, 1) places in the segment, from 0.
        key: (1, n) places relative to the segment's start; the memory's are negative.
        memory_count: a number or (B, 1, 1), how many memory slots are seen.
    """
    distance = query - key
    if position == "legacy":
        distance = distance - memory_count
    return distance.clamp(min=0)
