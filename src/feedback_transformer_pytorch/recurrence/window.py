"""Which keys of a window a segment's queries see, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import FeedbackConfig
from ..position import distances
from ..segments import Visibility


@dataclass(frozen=True)
class View:
    """What one segment of `length` tokens sees of a window of n slots and, behind them, of itself.

    Attributes:
        distance: (length, n + local) or (B, length, n + local), how far each key is, as `position` counts it.
        masked: (length, n + local) or (B, length, n + local) bool.
        has_keys: (B, 1, 1) bool, False for rows that see nothing at all; None when every row sees something.
    """

    distance: Tensor
    masked: Tensor
    has_keys: Tensor | None

    def bias(self, by_distance: Tensor) -> Tensor:
        """(H, length, n + local) or (B, H, length, n + local): the bias at each distance (H, M+S), very negative
        where a key is masked."""
        bias = by_distance[:, self.distance].movedim(0, -3)
        return bias.masked_fill(self.masked.unsqueeze(-3), masked_bias(bias.dtype))


def masked_bias(dtype: torch.dtype) -> float:
    """The bias of a masked key: half the lowest number, so that a score can be added to it."""
    return torch.finfo(dtype).min / 2


def view(
    config: FeedbackConfig,
    slots: int,
    filled: int,
    segment: int,
    length: int,
    visibility: Visibility | None,
    device: torch.device,
) -> View:
    """What a segment sees.

    Args:
        slots: n, the width of the window.
        filled: how many of its newest slots hold a token; the others are masked.
        segment: its number.
        length: its tokens; a lone token has no local keys.
        visibility: None when all rows see all.
    """
    local = length > 1
    query = torch.arange(length, device=device)[:, None]
    key = torch.arange(-slots, length if local else 0, device=device)
    masked = (key > query) | (key < -filled)
    count: int | Tensor = filled
    has_keys = None
    if visibility is not None:
        count = visibility.memory_count(segment, filled)[:, None, None]
        single = visibility.single_token[:, segment, None, None]
        masked = masked | (key < -count) | (single & (key >= 0))
        has_keys = (count > 0) | ~(single | (not local))
    elif not filled and not local:
        has_keys = torch.zeros(1, 1, 1, dtype=torch.bool, device=device)
    return View(distances(config.position, query, key, count), masked, has_keys)
