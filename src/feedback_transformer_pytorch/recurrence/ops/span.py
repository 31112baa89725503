"""Adaptive spans as operations."""

from __future__ import annotations

import torch
from torch import Tensor

from ...layers.attention import masked_score
from ...layers.span import EPS, narrow


class SpanOps:
    """What the spans of all layers do to the probabilities of a step.

    Attributes:
        gradient: (L, H, distances), that of `soft_mask`.
    """

    def __init__(self, soft_mask: Tensor, reach: Tensor, groups: int, dtype: torch.dtype) -> None:
        """Sets up.

        Args:
            soft_mask: (L, H, distances), the part of its probability that a key at each distance keeps.
            reach: (L,), the largest distance that each layer sees.
            groups: G.
            dtype: to compute in.
        """
        self._soft_mask, self._reach, self._groups, self._dtype = soft_mask, reach, groups, dtype
        self.gradient = torch.zeros_like(soft_mask)
        self._windows: dict[int, tuple[Tensor, Tensor]] = {}
        self._found: dict[int, Tensor] = {}

    def window(self, distance: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """What steps of `length` tokens need, whose keys are at distances (Q, n + local): the soft mask
        (L, G, Q, n + local), and what is added to the scores (L, Q, n + local)."""
        found = self._windows.get(length)
        if found is None:
            beyond = distance > self._reach[:, None, None]
            bias = torch.zeros_like(beyond, dtype=self._dtype).masked_fill_(beyond, masked_score(self._dtype))
            found = self._windows[length] = self._by_query(distance, length).to(self._dtype), bias
        return found

    def _by_query(self, distance: Tensor, length: int) -> Tensor:
        of_token = distance[:length]
        by_head = self._soft_mask[:, :, of_token]  # (L, H, length, n + local)
        return by_head.unflatten(1, (self._groups, -1)).flatten(2, 3)

    def step(self, probabilities: Tensor, soft_mask: Tensor) -> Tensor:
        """(..., BG, Q, n + local) to weights of the same shape; soft_mask is (..., G, Q, n + local)."""
        by_group = probabilities.unflatten(-3, (-1, self._groups))
        return narrow(by_group, soft_mask.unsqueeze(-4)).flatten(-4, -3)

    def step_backward(self, layer: int, length: int, grad: Tensor, probabilities: Tensor, soft_mask: Tensor) -> Tensor:
        """The gradient of the probabilities (BG, Q, n + local) of a layer, from that of the weights."""
        p, g = (tensor.unflatten(0, (-1, self._groups)) for tensor in (probabilities, grad))
        left = p * soft_mask
        total = left.sum(-1, keepdim=True) + EPS
        grad_left = (g - (g * (left / total)).sum(-1, keepdim=True)) / total
        if length not in self._found:
            self._found[length] = torch.zeros_like(self._windows[length][0], dtype=self.gradient.dtype)
        self._found[length][layer] += (grad_left * p).sum(0)
        return (grad_left * soft_mask).flatten(0, 1)

    def finish(self, distance: Tensor, length: int) -> None:
        """Adds to `gradient` what steps of `length` tokens gave, whose keys are at distances (length, n + local)."""
        if length not in self._found:
            return
        grad = self._found.pop(length).unflatten(2, (-1, length)).flatten(1, 2)  # (L, H, length, n + local)
        self.gradient.index_add_(2, distance.flatten(), grad.flatten(2).to(self.gradient.dtype))
