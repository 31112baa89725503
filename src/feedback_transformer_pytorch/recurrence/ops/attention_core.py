"""Attention of a step's queries over keys and values, without parameters."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

LocalKeysValues: TypeAlias = tuple[Tensor, Tensor] | None


class AttentionCore:
    """Attention of a step's queries over a window and, behind it, over their own segment.

    In tensors of heads, BG is batch times key/value heads, Q query heads per key/value head times the tokens of the
    segment, and n the window. `local` is the pair of the segment's keys and values (BG, s, E), or None.
    """

    def __init__(self, batch: int, groups: int, heads_per_group: int) -> None:
        self._batch, self._groups, self._heads_per_group = batch, groups, heads_per_group

    def split(self, rows: Tensor) -> Tensor:
        """(B*s, G*q*E) to (BG, Q, E); a view where the segment is one token."""
        if rows.shape[0] == self._batch:
            return rows.view(self._batch * self._groups, self._heads_per_group, -1)
        return self._heads(rows).flatten(0, 1).flatten(1, 2)

    def join(self, heads: Tensor, out: Tensor) -> Tensor:
        """(BG, Q, E) into the rows `out` (B*s, G*q*E)."""
        target = self._heads(out)
        target.copy_(heads.view(target.shape))
        return out

    def _heads(self, rows: Tensor) -> Tensor:
        length = rows.shape[0] // self._batch
        return rows.view(self._batch, length, self._groups, self._heads_per_group, -1).permute(0, 2, 3, 1, 4)

    def split_local(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B*s, 2*G*E) to keys and values (BG, s, E)."""
        pair = rows.view(self._batch, rows.shape[0] // self._batch, 2, self._groups, -1).permute(2, 0, 3, 1, 4)
        keys, values = pair.flatten(1, 2).unbind(0)
        return keys, values

    @staticmethod
    def probabilities(q: Tensor, keys_t: Tensor, local: LocalKeysValues, bias: Tensor, out: Tensor) -> Tensor:
        """softmax(q keys^T + bias) into `out` (BG, Q, n + s); q (BG, Q, E) is scaled, keys_t is (BG, E, n)."""
        if local is None and bias.dtype == q.dtype:
            scores = torch.baddbmm(bias, q, keys_t)
        else:
            scores = torch.bmm(q, keys_t)
            if local is not None:
                scores = torch.cat([scores, torch.bmm(q, local[0].transpose(1, 2))], -1)
            scores = scores + bias
        if scores.dtype == out.dtype:
            return torch.softmax(scores, -1, out=out)
        return out.copy_(torch.softmax(scores, -1))

    def step(self, probabilities: Tensor, values: Tensor, local: LocalKeysValues, out: Tensor) -> Tensor:
        """Probabilities (BG, Q, n + s) times values (BG, n, E), into the rows `out` (B*s, G*q*E)."""
        if out.shape[0] == self._batch and local is None:
            torch.bmm(probabilities, values, out=self.split(out))
            return out
        return self.join(self._both(probabilities, values, None if local is None else local[1]), out)

    @staticmethod
    def grad_weights(grad: Tensor, values_t: Tensor, local: LocalKeysValues, mask: Tensor | None) -> Tensor:
        """The gradient (BG, Q, n + s) of the weights before dropout, from `grad` (BG, Q, E) of the output."""
        found = torch.bmm(grad, values_t)
        if local is not None:
            found = torch.cat([found, torch.bmm(grad, local[1].transpose(1, 2))], -1)
        return found if mask is None else found * mask

    @staticmethod
    def softmax_backward(grad: Tensor, probabilities: Tensor, out: Tensor) -> None:
        """Writes the gradient of the scores (BG, Q, n + s), from that of the probabilities."""
        torch._softmax_backward_data(grad, probabilities, -1, grad.dtype, grad_input=out)

    def grad_queries(self, grad_scores: Tensor, keys: Tensor, local: LocalKeysValues, out: Tensor) -> None:
        """Writes the gradient of the query rows (B*s, G*q*E)."""
        if local is None and out.shape[0] == self._batch and out.dtype == grad_scores.dtype:
            torch.bmm(grad_scores, keys, out=self.split(out))
        else:
            self.join(self._both(grad_scores, keys, None if local is None else local[0]), out)

    def grad_local(self, q: Tensor, grad: Tensor, grad_scores: Tensor, weights: Tensor, out: Tensor) -> Tensor:
        """Writes the gradient of the local keys and values into the rows `out` (B*s, 2*G*E).

        Args:
            q, grad: (BG, Q, E), queries, and the gradient of the output.
            grad_scores, weights: (BG, Q, n + s).
        """
        length = out.shape[0] // self._batch
        target = out.view(self._batch, length, 2, self._groups, -1).permute(2, 0, 3, 1, 4)
        for place, factors, operand in zip(target, (grad_scores, weights), (q, grad), strict=True):
            place.copy_(torch.bmm(factors[..., -length:].transpose(1, 2), operand).view(place.shape))
        return out

    @staticmethod
    def _both(weights: Tensor, window: Tensor, local: Tensor | None) -> Tensor:
        if local is None:
            return torch.bmm(weights, window)
        slots = window.shape[1]
        return torch.bmm(weights[..., :slots], window).baddbmm_(weights[..., slots:], local)
