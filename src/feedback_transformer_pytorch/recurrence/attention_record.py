"""The attention of all segments of a walk, by the place of the key."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..config import FeedbackConfig
from .mask import AttentionMask


class AttentionRecord:
    """Gathers what each segment attends to.

    Attributes:
        attention: (B, L, H, T, n + T), to n carried slots and then to T tokens; zero where nothing was added.
    """

    def __init__(self, config: FeedbackConfig, x: Tensor, slots: int) -> None:
        """Begins.

        Args:
            x: (B, T, D), what is walked.
            slots: n.
        """
        batch, time = x.shape[:2]
        self._slots = slots
        self.attention = x.new_zeros(batch, config.depth, config.heads, time, slots + time)

    def add(self, start: int, weights: Tensor, mask: AttentionMask) -> None:
        """Adds a segment.

        Args:
            start: its first token.
            weights: (B, L, H, s, k + local), of its s tokens, for the k slots before it and then for itself.
            mask: what it sees.
        """
        length, columns = weights.shape[-2:]
        masked = mask.masked
        if mask.has_keys is not None:
            masked = masked | ~mask.has_keys
        if mask.blank is not None:  # zero states, not the tokens whose places they take
            masked = masked | F.pad(mask.blank, (0, columns - mask.blank.shape[-1]))
        if masked.ndim == 3:
            masked = masked[:, None, None]
        stop = self._slots + start + (length if length > 1 else 0)
        count = min(columns, stop)  # a window may begin before the first slot
        seen = weights.detach().masked_fill(masked, 0)[..., columns - count :]
        self.attention[:, :, :, start : start + length, stop - count : stop] = seen
