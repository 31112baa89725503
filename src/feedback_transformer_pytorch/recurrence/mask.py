"""Which keys the queries of a segment see, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import FeedbackConfig
from ..position import POSITIONS, distances
from ..segments import Visibility


@dataclass(frozen=True)
class AttentionMask:
    """What one segment of `length` tokens sees of n memory slots and, behind them, of itself.

    Attributes:
        distance: (length, n + local) or (B, length, n + local), how far each key is, as the position counts it.
        masked: (length, n + local) or (B, length, n + local) bool.
        has_keys: (B, 1, 1) bool, False for rows that see nothing at all; None when every row sees something.
        blank: (B, 1, n) bool, True at slots before the row's document that stand for zero states; None for none.
    """

    distance: Tensor
    masked: Tensor
    has_keys: Tensor | None
    blank: Tensor | None


def attention_mask(
    config: FeedbackConfig,
    slots: int,
    filled: int,
    segment: int,
    length: int,
    visibility: Visibility | None,
    device: torch.device,
) -> AttentionMask:
    """What a segment sees.

    Args:
        slots: n, the number of memory slots.
        filled: how many of the newest slots hold a token; the others are masked.
        segment: its number.
        length: its tokens; a single token does not see itself.
        visibility: None when all rows see all.
    """
    sees_segment = length > 1
    query = torch.arange(length, device=device)[:, None]
    key = torch.arange(-slots, length if sees_segment else 0, device=device)
    masked = (key > query) | (key < -filled)
    count: int | Tensor = filled
    has_keys = blank = None
    if visibility is not None:
        count = visibility.memory_count(segment, filled)[:, None, None]
        single = visibility.single_token[:, segment, None, None]
        masked = masked | (single & (key >= 0))
        if config.memory_start == "zeros":
            blank = (key < -count)[..., :slots]
            count = filled
        else:
            masked = masked | (key < -count)
            has_keys = (count > 0) | ~(single | (not sees_segment))
    elif not filled and not sees_segment:
        has_keys = torch.zeros(1, 1, 1, dtype=torch.bool, device=device)
    counts_memory = POSITIONS[config.position].counts_memory
    return AttentionMask(distances(counts_memory, query, key, count), masked, has_keys, blank)
