"""Adaptive attention span: each head learns how far back it attends (Sukhbaatar et al. 2019, arXiv 1905.07799)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import FeedbackConfig

EPS = 1e-8  # added to the sum that probabilities are divided by


class AdaptiveSpan(nn.Module):
    """The spans of one layer's heads.

    A key at distance d keeps the part clamp((span - (d - 1)) / ramp + 1, 0, 1) of its probability; what is left is then
    divided by its sum. Keys that no head of the layer can see are masked before the softmax, in steps of `trim` slots.

    Attributes:
        ratio: (H,), the spans as parts of `mem_len`.
    """

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__()
        self.mem_len, self.ramp, self.trim = config.mem_len, config.span_ramp, config.span_trim
        self.ratio = nn.Parameter(torch.full((config.heads,), float(config.span_init)))

    def forward(self, probabilities: Tensor, distance: Tensor) -> Tensor:
        """Probabilities (B, H, S, n) of keys at distances (S, n) or (B, S, n)."""
        mask = self.soft_mask(distance)
        return narrow(probabilities, mask if distance.ndim == 2 else mask.transpose(0, 1))

    def soft_mask(self, distance: Tensor) -> Tensor:
        """(H, ...): the part that keys at distances (...) keep of their probability."""
        span = (self.ratio * self.mem_len).view(-1, *[1] * distance.ndim)
        return ((span - (distance - 1)) / self.ramp + 1).clamp(0, 1)

    def reach(self) -> Tensor:
        """The largest distance that is not masked, a number (): a whole number of trimmed slots below M."""
        with torch.no_grad():
            longest = (self.ratio.max() * self.mem_len + self.ramp).ceil().clamp(0, self.mem_len)
            unseen = (self.mem_len - longest).clamp(max=self.mem_len - 1)
            return self.mem_len - (unseen / self.trim).floor() * self.trim

    def loss(self) -> Tensor:
        """The mean span of the heads, in tokens: a number ()."""
        return self.ratio.mean() * self.mem_len


def narrow(probabilities: Tensor, soft_mask: Tensor) -> Tensor:
    """Probabilities times their soft mask, divided by their sum."""
    left = probabilities * soft_mask
    return left / (left.sum(-1, keepdim=True) + EPS)
