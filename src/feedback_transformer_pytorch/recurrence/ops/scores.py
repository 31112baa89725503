"""What positions add to the scores, as operations.

A position that returns terms of a new type needs a class with the methods of `ScoreOps` and an entry in `SCORE_OPS`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ...position import DistanceVectors, gather_rows
from ..layout.precision import Precision


class ScoreOps(Protocol):
    """A term of the scores that depends on the queries.

    Attributes:
        columns: numbers a query head that `step_backward` writes.
        gradients: of the term's tensors, None where none is needed.
    """

    columns: int
    gradients: list[Tensor | None]

    def of_window(self, distance: Tensor) -> Tensor:
        """What a step needs of the distances (Q, n + local) or (BG, Q, n + local) of its window."""

    def step(self, q: Tensor, window: Tensor) -> Tensor:
        """Queries (BG, Q, E), which are scaled, to what is added to their scores (BG, Q, n + local)."""

    def step_backward(self, grad_scores: Tensor, window: Tensor) -> Tensor:
        """The gradient (BG, Q, columns) of what the queries are multiplied to, from that of the scores."""

    def add_query_gradient(self, grad_columns: Tensor, grad_q: Tensor) -> None:
        """Adds to the gradient of query rows (R, H*E) that by way of rows (R, H*columns)."""

    def accumulate(self, grad_columns: Tensor, q: Tensor) -> None:
        """Adds the gradients of the term's tensors of many steps, from rows (R, H*columns) and (R, H*E)."""


class VectorScores:
    """The query times the vector of the distance, a row of a table (N, E) that all layers and heads share."""

    def __init__(self, term: DistanceVectors, precision: Precision, needs_grad: bool) -> None:
        self.table = term.table.to(precision.weights).to(precision.attention)
        self._row, self.columns = term.row, term.table.shape[0]
        self.gradients = [torch.zeros_like(term.table) if needs_grad else None]

    def of_window(self, distance: Tensor) -> Tensor:
        return self._row[distance]

    def step(self, q: Tensor, window: Tensor) -> Tensor:
        return gather_rows(q @ self.table.t(), window)

    def step_backward(self, grad_scores: Tensor, window: Tensor) -> Tensor:
        products = grad_scores.new_zeros(*grad_scores.shape[:-1], self.columns)
        return products.scatter_add_(-1, window.expand_as(grad_scores), grad_scores)

    def add_query_gradient(self, grad_columns: Tensor, grad_q: Tensor) -> None:
        width = self.table.shape[1]
        grad_q.view(-1, width).add_(torch.mm(grad_columns.view(-1, self.columns), self.table))

    def accumulate(self, grad_columns: Tensor, q: Tensor) -> None:
        gradient = self.gradients[0]
        if gradient is not None:
            gradient.add_(grad_columns.reshape(-1, self.columns).t() @ q.reshape(-1, self.table.shape[1]))


SCORE_OPS: dict[type, type[VectorScores]] = {DistanceVectors: VectorScores}
