"""The two sub-layers of a block, composed of ops, and so ops themselves.

`step` goes forward. Backward goes chunk by chunk: `prepare` prepares a chunk in bulk, `step_backward` walks its steps
downwards, `accumulate` adds its parameter gradients. R are the rows of a step, Rc those of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .ops import Attention, BucketScores, Geglu, Linear, LocalKeysValues, Norm
from .tape import Step
from .workspace import Workspace


class Window(NamedTuple):
    """What a segment's queries attend to, in any layer.

    Attributes:
        keys, values: (BG, n, E), views of the memory; keys_t, values_t: (BG, E, n), the same transposed.
        bias: (BG, Q, n + local), very negative where a key is masked.
        buckets: (Q, n + local), of distances whose vectors are added to the scores; None where none are.
        has_keys: (R, 1), False for rows that see nothing at all; None when every row sees something.
    """

    keys: Tensor
    values: Tensor
    keys_t: Tensor
    values_t: Tensor
    bias: Tensor
    buckets: Tensor | None
    has_keys: Tensor | None


class FeedForwardChunk(NamedTuple):
    """A chunk of Rc rows in the backward pass: inputs, outputs, and buffers for the gradients that the steps write."""

    y: Tensor  # (Rc, D)
    mean: Tensor  # (Rc, 1)
    rstd: Tensor  # (Rc, 1)
    normed: Tensor  # (Rc, D)
    product: Tensor  # (Rc, 4*D), written by the steps or before them
    grad_hidden: Tensor  # (Rc, 2, 4*D)
    grad_normed: Tensor  # (Rc, D)


class AttentionChunk(NamedTuple):
    """The same for attention."""

    x: Tensor  # (Rc, D)
    mean: Tensor  # (Rc, 1)
    rstd: Tensor  # (Rc, 1)
    normed: Tensor  # (Rc, D)
    q: Tensor  # (Rc, H*E), scaled
    out: Tensor  # (Rc, H*E)
    grad_products: Tensor | None  # (Rc, H*buckets), of the queries' products with the position's vectors
    grad_q: Tensor  # (Rc, H*E)
    grad_local: Tensor | None  # (Rc, 2*G*E), zero for lone tokens; None where all are
    grad_normed: Tensor  # (Rc, D)


class FeedForwardSublayer:
    """Norm, linear, GEGLU, linear. Products with parameters are computed in `dtype`."""

    def __init__(self, norm: Norm, to_hidden: Linear, to_out: Linear, dtype: torch.dtype) -> None:
        self._norm, self._to_hidden, self._to_out, self._dtype = norm, to_hidden, to_out, dtype
        self._workspace = Workspace()

    def step(self, y: Tensor, at: Step) -> Tensor:
        """(R, D) to (R, D), without the residual; writes `at.hidden`."""
        self.hidden(y, at.hidden)
        return self._to_out.step(Geglu.step(at.hidden, at.hidden_mask))

    def hidden(self, y: Tensor, out: Tensor) -> None:
        """Writes what comes before the gate, of a step or of a chunk."""
        self._to_hidden.step(self._norm.step(y).to(self._dtype), out=out)

    def prepare(self, y: Tensor, hidden: Tensor) -> None:
        """Prepares a chunk of steps from its inputs (Rc, D) and hidden values (Rc, 8*D)."""
        normed, mean, rstd = self._norm.recompute(y)
        normed = normed.to(self._dtype)
        rows, width = hidden.shape[0], hidden.shape[1] // 2
        product = self._workspace.get("product", (rows, width), hidden)
        grad_hidden = self._workspace.get("grad_hidden", (rows, 2, width), hidden)
        grad_normed = self._workspace.get("grad_normed", (rows, y.shape[1]), normed)
        self.chunk = FeedForwardChunk(y, mean, rstd, normed, product, grad_hidden, grad_normed)

    def split(self, hidden: Tensor, dropout_mask: Tensor | None, counts: list[int]) -> None:
        """Computes the chunk's products and their derivatives, and cuts it into steps of `counts` rows."""
        at = self.chunk
        slopes = self._workspace.get("slopes", tuple(at.grad_hidden.shape), hidden)
        Geglu.recompute(hidden, dropout_mask, at.product, slopes)
        parts = (at.y, at.mean, at.rstd, slopes, at.grad_hidden, at.grad_hidden.flatten(1), at.grad_normed)
        self._steps = list(zip(*(part.split(counts) for part in parts), strict=True))

    def step_backward(self, step: int, grad: Tensor) -> Tensor:
        """The gradient (R, D) by the input of the chunk's step number `step`, without the residual's."""
        y, mean, rstd, slopes, grad_hidden, grad_flat, grad_normed = self._steps[step]
        Geglu.step_backward(self._to_out.step_backward(grad.to(self._dtype)), slopes, grad_hidden)
        self._to_hidden.step_backward(grad_flat, out=grad_normed)
        return self._norm.step_backward(grad_normed.to(grad.dtype), y, mean, rstd)

    def accumulate(self, grad: Tensor) -> None:
        """Adds the chunk's parameter gradients; grad (Rc, D) is that of its outputs."""
        at = self.chunk
        self._to_out.accumulate(grad.to(self._dtype), at.product)
        self._to_hidden.accumulate(at.grad_hidden.flatten(1), at.normed)
        self._norm.accumulate(at.grad_normed, at.y, at.mean, at.rstd)


class AttentionSublayer:
    """Norm, query, attention over the window, linear. Products with parameters are computed in `dtype`."""

    def __init__(
        self,
        norm: Norm,
        to_q: Linear,
        to_kv: Linear,
        to_out: Linear,
        attention: Attention,
        position: BucketScores | None,
        dtype: torch.dtype,
    ) -> None:
        self._norm, self._to_q, self._to_kv, self._to_out = norm, to_q, to_kv, to_out
        self._attention, self._position, self._dtype = attention, position, dtype
        self._workspace = Workspace()

    def step(self, x: Tensor, window: Window, at: Step) -> Tensor:
        """(R, D) to (R, D), without the residual; writes `at.q`, `at.local`, `at.probabilities` and `at.out`."""
        self.project(x, at.q, at.local)
        self.attend(window, at)
        return self.output(at.out, window.has_keys)

    def project(self, x: Tensor, q: Tensor, local: Tensor | None) -> None:
        """Writes queries and local keys and values, of a step or of a chunk."""
        normed = self._norm.step(x).to(self._dtype)
        self._to_q.step(normed, out=q)
        if local is not None:
            self._to_kv.step(normed, out=local)

    def attend(self, window: Window, at: Step) -> None:
        """Writes the probabilities and what they give."""
        attention, local = self._attention, self._local(at)
        q, bias = attention.split(at.q), window.bias
        if self._position is not None and window.buckets is not None:
            bias = bias + self._position.step(q, window.buckets)
        p = attention.probabilities(q, window.keys_t, local, bias, at.probabilities)
        attention.step(p if at.probabilities_mask is None else p * at.probabilities_mask, window.values, local, at.out)

    def output(self, out: Tensor, has_keys: Tensor | None) -> Tensor:
        """What attention gave to (R, D), of a step or of a chunk."""
        y = self._to_out.step(out.to(self._dtype))
        return y if has_keys is None else y * has_keys

    def prepare(self, x: Tensor, q: Tensor, local: Tensor | None, out: Tensor) -> None:
        """Prepares a chunk of steps from its inputs (Rc, D), and from the `q`, `local` and `out` of all its steps."""
        normed, mean, rstd = self._norm.recompute(x)
        normed = normed.to(self._dtype)
        grad_q = self._workspace.get("grad_q", tuple(out.shape), normed)
        grad_normed = self._workspace.get("grad_normed", tuple(x.shape), normed)
        grad_local = None if local is None else normed.new_zeros(local.shape)
        grad_products = None
        if self._position is not None:
            width = q.shape[1] // self._position.table.shape[1] * self._position.table.shape[0]
            grad_products = self._workspace.get("grad_products", (q.shape[0], width), q)
        self.chunk = AttentionChunk(x, mean, rstd, normed, q, out, grad_products, grad_q, grad_local, grad_normed)

    def split(self, at: list[Step], counts: list[int]) -> None:
        """Cuts the chunk into steps of `counts` rows, for `step_backward`."""
        chunk = self.chunk
        parts = (chunk.x, chunk.mean, chunk.rstd, chunk.grad_q, chunk.grad_normed)
        self._at, self._steps = at, list(zip(*(part.split(counts) for part in parts), strict=True))
        self._local_steps = None if chunk.grad_local is None else chunk.grad_local.split(counts)
        self._products_steps = None if chunk.grad_products is None else chunk.grad_products.split(counts)

    def step_backward(self, step: int, grad: Tensor, window: Window, grad_scores: Tensor, grad_out: Tensor) -> Tensor:
        """The gradient (R, D) by the input of the chunk's step number `step`, without the residual's.

        Args:
            grad: (R, D), zero for rows that see nothing.
            grad_scores: (BG, Q, n + local), written.
            grad_out: (R, H*E), written: the gradient of what attention gave.
        """
        x, mean, rstd, grad_q, grad_normed = self._steps[step]
        at, attention = self._at[step], self._attention
        self._to_out.step_backward(grad.to(self._dtype), out=grad_out)
        heads, local = attention.split(grad_out), self._local(at)
        attention.step_backward(heads, window.keys, window.values_t, local, at, grad_scores, grad_q)
        if self._position is not None and window.buckets is not None and self._products_steps is not None:
            products = self._position.step_backward(grad_scores, window.buckets)
            rows = attention.join(products, self._products_steps[step])
            self._position.add_query_gradient(rows, grad_q)
        self._to_q.step_backward(grad_q, out=grad_normed)
        if local is not None and self._local_steps is not None:
            grad_local = attention.local_backward(heads, at, grad_scores, self._local_steps[step])
            grad_normed.add_(self._to_kv.step_backward(grad_local))
        return self._norm.step_backward(grad_normed.to(x.dtype), x, mean, rstd)

    def accumulate(self, grad: Tensor) -> None:
        """Adds the chunk's parameter gradients; grad (Rc, D) is that of its outputs, zero for rows that see nothing."""
        at = self.chunk
        self._to_out.accumulate(grad.to(self._dtype), at.out.to(self._dtype))
        self._to_q.accumulate(at.grad_q, at.normed)
        if at.grad_local is not None:
            self._to_kv.accumulate(at.grad_local, at.normed)
        if self._position is not None and at.grad_products is not None:
            self._position.accumulate(at.grad_products, at.q)
        self._norm.accumulate(at.grad_normed, at.x, at.mean, at.rstd)

    def _local(self, at: Step) -> LocalKeysValues:
        return None if at.local is None else self._attention.split_local(at.local)
