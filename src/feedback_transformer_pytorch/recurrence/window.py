"""The window of keys that one segment sees."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import FeedbackConfig
from ..layers import Context
from ..position import distances
from ..segments import Visibility


def see(
    config: FeedbackConfig,
    keys: Tensor,
    values: Tensor,
    bias_by_distance: Tensor,
    segment: int,
    length: int,
    visibility: Visibility | None,
) -> Context:
    """What a segment sees.

    Args:
        keys, values: (B, n, G*E), the memory before the segment, n <= M.
        bias_by_distance: (H, M+S).
        segment: its number.
        length: its tokens; one token has no own keys.
        visibility: None when all rows see all.
    """
    slots, own, device = keys.shape[1], length > 1, keys.device
    query = torch.arange(length, device=device)[:, None]
    key = torch.arange(-slots, length if own else 0, device=device)
    hidden = key > query
    count: int | Tensor = slots
    seeing = None
    if visibility is not None:
        count = visibility.memory_count(segment, slots)[:, None, None]
        alone = visibility.alone[:, segment, None, None]
        hidden = hidden | (key < -count) | (alone & (key >= 0))
        seeing = (count > 0) | ~(alone | (not own))
    distance = distances(config.position, query, key, count)
    # (H, S, n') or (B, H, S, n')
    bias = bias_by_distance[:, distance].movedim(0, -3)
    bias = bias.masked_fill(hidden.unsqueeze(-3), torch.finfo(bias.dtype).min)
    split = (config.kv_heads or config.heads, config.dim_head)
    return Context(keys.unflatten(-1, split), values.unflatten(-1, split), own, bias, seeing)
