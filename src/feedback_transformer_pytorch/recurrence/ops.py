"""The operations of a block, each as an op: the step forward, the step's input gradient, and the parameter gradient.

The first two are what must happen one after another in time. The third waits until many steps are done and is then one
large product over all of them. Rows (R) are the tokens of one step, or of many.
"""

from __future__ import annotations

from functools import cached_property
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..position import gather_buckets
from .precision import Precision
from .products import Product
from .tape import Step

_norm_backward = torch.ops.aten.native_layer_norm_backward.default
LocalKeysValues: TypeAlias = tuple[Tensor, Tensor] | None


class Norm:
    """Layer normalisation."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float, needs_grad: tuple[bool, bool]) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps
        self._shape = list(weight.shape)
        self._needs_grad = [False, *needs_grad]
        self.gradients: list[Tensor | None] = [torch.zeros_like(weight) if wants else None for wants in needs_grad]

    def step(self, x: Tensor) -> Tensor:
        """(R, D) to (R, D)."""
        return torch.native_layer_norm(x, self._shape, self.weight, self.bias, self.eps)[0]

    def recompute(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Recomputes the output (R, D) of many steps, with the mean and the inverse deviation (R, 1)."""
        return torch.native_layer_norm(x, self._shape, self.weight, self.bias, self.eps)

    def step_backward(self, grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """The gradient of x from the gradient of the output, both (R, D)."""
        return _norm_backward(grad, x, self._shape, mean, rstd, self.weight, self.bias, [True, False, False])[0]

    def accumulate(self, grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> None:
        """Adds the parameter gradients of many steps."""
        if not any(self._needs_grad):
            return
        mask = self._needs_grad
        found = _norm_backward(grad.to(x.dtype), x, self._shape, mean, rstd, self.weight, self.bias, mask)
        for total, part in zip(self.gradients, found[1:], strict=True):
            if total is not None:
                total.add_(part)


class Linear:
    """x W^T + b, the weight times `scale`, for `steps` steps of `rows` rows."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        precision: Precision,
        needs_grad: tuple[bool, bool],
        rows: int,
        steps: int,
        scale: float = 1.0,
    ) -> None:
        self.weight, self.bias, self.scale = weight, bias, scale
        self._precision, self._rows, self._steps = precision, rows, steps
        self.gradients: list[Tensor | None] = [
            torch.zeros_like(parameter) if wants and parameter is not None else None
            for parameter, wants in zip((weight, bias), needs_grad, strict=True)
        ]

    @cached_property
    def _scaled(self) -> Tensor:
        scaled = self.weight * self.scale if self.scale != 1.0 else self.weight
        return scaled.to(self._precision.weights).to(self._precision.products)

    def step(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(R, in) to (R, out)."""
        precision = self._precision
        if precision.inputs != precision.products:
            x = x.to(precision.inputs).to(precision.products)
        return self._product(x, out)

    @cached_property
    def _product(self) -> Product:
        bias = None if self.bias is None else self.bias.to(self._precision.products)
        return Product(self._scaled, bias, self._rows, self._steps)

    @cached_property
    def step_backward(self) -> Product:
        """The gradient of x (R, in) from that of the output (R, out)."""
        return Product(self._scaled.t(), None, self._rows, self._steps)

    def accumulate(self, grad: Tensor, x: Tensor) -> None:
        """Adds the parameter gradients of many steps, from the gradients of their outputs and their inputs."""
        weight, bias = self.gradients
        if weight is not None:
            bulk = self._precision.bulk
            if weight.dtype == x.dtype == bulk:
                weight.addmm_(grad.t(), x, alpha=self.scale)
            else:
                weight.add_(grad.to(bulk).t() @ x.to(bulk), alpha=self.scale)
        if bias is not None:
            bias.add_(grad.sum(0, dtype=bias.dtype))


class Geglu:
    """gelu(gate) * value, where the input is value, then gate; it has no parameters."""

    @staticmethod
    def step(hidden: Tensor, dropout_mask: Tensor | None) -> Tensor:
        """(R, 2F) to (R, F). `dropout_mask` (R, F) is the dropout mask."""
        value, gate = hidden.chunk(2, dim=-1)
        product = F.gelu(gate).mul_(value)
        return product if dropout_mask is None else product.mul_(dropout_mask)

    @staticmethod
    def recompute(hidden: Tensor, dropout_mask: Tensor | None, product: Tensor, slopes: Tensor) -> None:
        """Of many steps: writes the output (R, F), and its derivatives (R, 2, F) by value and gate."""
        value, gate = hidden.chunk(2, dim=-1)
        by_value, by_gate = slopes.unbind(1)
        torch.ops.aten.gelu.out(gate, out=by_value)
        torch.ops.aten.gelu_backward.grad_input(value, gate, grad_input=by_gate)
        torch.mul(by_value, value, out=product)
        if dropout_mask is not None:
            slopes.mul_(dropout_mask[:, None])
            product.mul_(dropout_mask)

    @staticmethod
    def step_backward(grad: Tensor, slopes: Tensor, out: Tensor) -> None:
        """Writes the gradient of the input into `out` (R, 2, F)."""
        torch.mul(grad[:, None], slopes, out=out)


class Attention:
    """Attention of a step's queries over a window of the memory and, behind it, over their own segment.

    It has no parameters; the gradients of keys and values are gathered by `KeyValueGradient`. In tensors of heads, BG
    is batch times key/value heads, Q query heads per key/value head times the tokens of the segment, and n the window.
    `local` is the pair of keys and values (BG, s, E) of the segment itself, or None.
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

    def step_backward(
        self,
        grad: Tensor,
        keys: Tensor,
        values_t: Tensor,
        local: LocalKeysValues,
        at: Step,
        grad_scores: Tensor,
        grad_q: Tensor,
    ) -> None:
        """Writes the gradients of the scores (BG, Q, n + s) and of the query rows (B*s, G*q*E), from `grad` (BG, Q, E)
        of the output."""
        grad_p = torch.bmm(grad, values_t)
        if local is not None:
            grad_p = torch.cat([grad_p, torch.bmm(grad, local[1].transpose(1, 2))], -1)
        if at.probabilities_mask is not None:
            grad_p = grad_p * at.probabilities_mask
        torch._softmax_backward_data(grad_p, at.probabilities, -1, grad_p.dtype, grad_input=grad_scores)
        if local is None and grad_q.shape[0] == self._batch and grad_q.dtype == grad.dtype:
            torch.bmm(grad_scores, keys, out=self.split(grad_q))
        else:
            self.join(self._both(grad_scores, keys, None if local is None else local[0]), grad_q)

    def local_backward(self, grad: Tensor, at: Step, grad_scores: Tensor, out: Tensor) -> Tensor:
        """Writes the gradient of the segment's own keys and values into the rows `out` (B*s, 2*G*E)."""
        q, length = self.split(at.q), out.shape[0] // self._batch
        p = at.probabilities if at.probabilities_mask is None else at.probabilities * at.probabilities_mask
        target = out.view(self._batch, length, 2, self._groups, -1).permute(2, 0, 3, 1, 4)
        for place, weights, operand in zip(target, (grad_scores, p), (q, grad), strict=True):
            place.copy_(torch.bmm(weights[..., -length:].transpose(1, 2), operand).view(place.shape))
        return out

    @staticmethod
    def _both(weights: Tensor, window: Tensor, local: Tensor | None) -> Tensor:
        if local is None:
            return torch.bmm(weights, window)
        slots = window.shape[1]
        return torch.bmm(weights[..., :slots], window).baddbmm_(weights[..., slots:], local)


class BucketScores:
    """What distances add to the scores: the query times the vector of the distance's bucket, a row of `table`
    (buckets, E) that all layers and heads share."""

    def __init__(self, table: Tensor, precision: Precision, needs_grad: bool) -> None:
        self.table = table.to(precision.weights).to(precision.attention)
        self.gradient = torch.zeros_like(table) if needs_grad else None

    def step(self, q: Tensor, buckets: Tensor) -> Tensor:
        """Queries (BG, Q, E), which are scaled, to (BG, Q, n + s); buckets are (Q, n + s)."""
        return gather_buckets(q @ self.table.t(), buckets)

    def step_backward(self, grad_scores: Tensor, buckets: Tensor) -> Tensor:
        """The gradient (BG, Q, buckets) of the queries' products with the table, from that of the scores."""
        products = grad_scores.new_zeros(*grad_scores.shape[:-1], self.table.shape[0])
        return products.scatter_add_(-1, buckets.expand_as(grad_scores), grad_scores)

    def add_query_gradient(self, grad_products: Tensor, grad_q: Tensor) -> None:
        """Adds to the gradient of query rows (R, H*E) that by way of the products, rows (R, H*buckets)."""
        buckets, width = self.table.shape
        grad_q.view(-1, width).add_(torch.mm(grad_products.view(-1, buckets), self.table))

    def accumulate(self, grad_products: Tensor, q: Tensor) -> None:
        """Adds the table's gradient of many steps, from rows (R, H*buckets) and (R, H*E)."""
        if self.gradient is not None:
            buckets, width = self.table.shape
            self.gradient.add_(grad_products.reshape(-1, buckets).t() @ q.reshape(-1, width))


class KeyValueGradient:
    """The gradient of the memory's keys and values, for a block of C segments that is walked backwards.

    A slot is seen by all layers and by every later query of its window. Within the block, the queries after a
    segment give their part when the walk reaches it, in one product over segments and layers; what the block's queries
    give to slots before it is one product when the block is done.

    Attributes:
        total: (2, BG, n + T, E), the gradients of the keys and of the values; what comes from outside stands in it
            from the start.
        start: the block's first token.
        grad_scores_band: (2, BG, C, L, Q, n + C*s), the gradients of the scores, and the probabilities after dropout.
        operands: (2, BG, C, L, Q, E), what they multiply: queries, and gradients of the outputs.
    """

    def __init__(self, total: Tensor, slots: int) -> None:
        self.total, self._slots = total, slots
        self._shape: tuple[int, int] | None = None

    def begin(self, start: int, segments: int, length: int, layers: int, queries: int, like: Tensor) -> None:
        """Begins a block of `segments` segments of `length` tokens at token `start`; `queries` is Q, and `like` has
        the type to compute in."""
        self.start, self._length = start, length
        shape = (segments, length)
        if shape == self._shape:
            return  # the same places are written again; the others stay zero
        self._shape = shape
        _, groups, _, width = self.total.shape
        # Row (c, l, q) holds the window of segment c, c*length columns to the right of the first one's.
        columns = self._slots + segments * length
        self.grad_scores_band = like.new_zeros(2, groups, segments, layers, queries, columns)
        self.operands = like.new_empty(2, groups, segments, layers, queries, width)

    def slot(self, segment: int) -> Tensor:
        """(2, BG, s, E): the finished gradient of the slots that the block's segment number `segment` wrote."""
        place = self._slots + self.start + segment * self._length
        total = self.total[:, :, place : place + self._length]
        if segment + 1 < self.grad_scores_band.shape[2]:
            column = self._slots + segment * self._length
            later = self.grad_scores_band[:, :, segment + 1 :, ..., column : column + self._length]
            operands = self.operands[:, :, segment + 1 :].flatten(2, 4).flatten(0, 1)
            total.add_(torch.bmm(later.flatten(2, 4).flatten(0, 1).transpose(1, 2), operands).view(total.shape))
        return total

    def add(self, segment: int, grad_scores: Tensor, probabilities: Tensor, q: Tensor, grad: Tensor) -> None:
        """Takes a segment's part, of all layers: (L, BG, Q, n + local) twice, then (L, BG, Q, E) twice."""
        columns = slice(segment * self._length, segment * self._length + self._slots)
        for band, place, weights, operand in zip(
            self.grad_scores_band, self.operands, (grad_scores, probabilities), (q, grad), strict=True
        ):
            band[:, segment, ..., columns].copy_(weights[..., : self._slots].transpose(0, 1))
            place[:, segment].copy_(operand.transpose(0, 1))

    def end(self) -> None:
        """Gives the slots before the block the gradients from all its queries."""
        earlier = self.grad_scores_band[..., : self._slots].flatten(2, 4).flatten(0, 1)
        found = torch.bmm(earlier.transpose(1, 2), self.operands.flatten(2, 4).flatten(0, 1))
        self.total[:, :, self.start : self.start + self._slots].add_(found.view(2, -1, *found.shape[1:]))
