"""The gradient of the memory's keys and values."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueGradient:
    """The gradient of the memory's keys and values, for a strip of C segments, in reverse time order.

    A slot is seen by every later query of its window, in all L/K layers of its bank. Within the strip, the queries
    after a segment give their part when the backward pass reaches it, in one product over segments and layers; what the
    strip's queries give to slots before it is one product when the strip is done.

    Attributes:
        total: (2, K*BG, n + T, E), the gradients of the keys and of the values; what comes from outside stands in it
            from the start.
        start: the strip's first token.
        grad_scores_band: (2, K*BG, C, L/K, Q, n + C*s), the gradients of the scores, and the weights of the values.
        operands: (2, K*BG, C, L/K, Q, E), what they multiply: queries, and gradients of the outputs.
    """

    def __init__(self, total: Tensor, slots: int, banks: int) -> None:
        self.total, self._slots, self._banks = total, slots, banks
        self._shape: tuple[int, int] | None = None

    def begin(self, start: int, segments: int, length: int, layers: int, queries: int, like: Tensor) -> None:
        """Begins a strip of `segments` segments of `length` tokens at token `start`; `layers` is L, `queries` is Q, and
        `like` has the type to compute in."""
        self.start, self._length = start, length
        shape = (segments, length)
        if shape == self._shape:
            return  # the same places are written again; the others stay zero
        self._shape = shape
        _, groups, _, width = self.total.shape
        layers //= self._banks
        # Row (c, l, q) holds the window of segment c, c*length columns to the right of the first one's.
        columns = self._slots + segments * length
        self.grad_scores_band = like.new_zeros(2, groups, segments, layers, queries, columns)
        self.operands = like.new_empty(2, groups, segments, layers, queries, width)

    def slot(self, segment: int) -> Tensor:
        """(2, K*BG, s, E): the finished gradient of the slots that the strip's segment number `segment` wrote."""
        place = self._slots + self.start + segment * self._length
        total = self.total[:, :, place : place + self._length]
        if segment + 1 < self.grad_scores_band.shape[2]:
            column = self._slots + segment * self._length
            later = self.grad_scores_band[:, :, segment + 1 :, ..., column : column + self._length]
            operands = self.operands[:, :, segment + 1 :].flatten(2, 4).flatten(0, 1)
            total.add_(torch.bmm(later.flatten(2, 4).flatten(0, 1).transpose(1, 2), operands).view(total.shape))
        return total

    def add(self, segment: int, grad_scores: Tensor, weights: Tensor, q: Tensor, grad: Tensor) -> None:
        """Takes a segment's part, of all layers: (L, BG, Q, n + local) twice, then (L, BG, Q, E) twice."""
        columns = slice(segment * self._length, segment * self._length + self._slots)
        for band, place, factors, operand in zip(
            self.grad_scores_band, self.operands, (grad_scores, weights), (q, grad), strict=True
        ):
            band[:, segment, ..., columns].copy_(self._by_bank(factors[..., : self._slots]))
            place[:, segment].copy_(self._by_bank(operand))

    def _by_bank(self, layers: Tensor) -> Tensor:
        """(L, BG, ...) seen as (K*BG, L/K, ...)."""
        return layers.transpose(0, 1) if self._banks == 1 else layers.flatten(0, 1).unsqueeze(1)

    def end(self) -> None:
        """Gives the slots before the strip the gradients from all its queries."""
        earlier = self.grad_scores_band[..., : self._slots].flatten(2, 4).flatten(0, 1)
        found = torch.bmm(earlier.transpose(1, 2), self.operands.flatten(2, 4).flatten(0, 1))
        self.total[:, :, self.start : self.start + self._slots].add_(found.view(2, -1, *found.shape[1:]))
