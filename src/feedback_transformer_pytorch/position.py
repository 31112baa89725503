"""Relative position: a bias on the attention scores that depends on the distance between query and key."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import Position

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


class RelativePosition(nn.Module):
    """The learned bias of each head for each T5 bucket; one table shared by all layers."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.bias = nn.Embedding(NUM_BUCKETS, heads)

    def forward(self, distances: int) -> Tensor:
        """(H, distances): the bias at distance 0, 1, ... ."""
        steps = torch.arange(distances, device=self.bias.weight.device)
        return self.bias(bucket(steps)).transpose(0, 1)


def distances(position: Position, query: Tensor, key: Tensor, memory_count: int | Tensor) -> Tensor:
    """How far each key lies behind each query, never negative.

    Args:
        position: "t5": the true distance. "legacy": version 0.0.11 counts queries from 0 although the memory
            precedes them, so each distance is too short by the number of memory slots seen.
        query: (S, 1) places in the segment, from 0.
        key: (1, n) places relative to the segment's start; the memory's are negative.
        memory_count: a number or (B, 1, 1), how many memory slots are seen.
    """
    distance = query - key
    if position == "legacy":
        distance = distance - memory_count
    return distance.clamp(min=0)
