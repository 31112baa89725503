"""The two sub-layers of a block, composed of triples, and so triples themselves.

`step` goes forward. Backward goes chunk by chunk: `again` prepares a chunk in bulk, `step_backward` walks its steps
downwards, `accumulate` adds its parameter gradients. R are the rows of a step, Rc those of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .room import Room
from .tape import Step
from .triples import Attention, Geglu, Linear, Norm, Own


class Window(NamedTuple):
    """What a segment's queries attend to, in any layer.

    Attributes:
        keys, values: (BG, n, E), views of the memory; keys_t, values_t: (BG, E, n), the same transposed.
        bias: (BG, Q, n + own), very negative where a key is hidden.
        seeing: (R, 1), False for rows that see nothing at all; None when every row sees something.
    """

    keys: Tensor
    values: Tensor
    keys_t: Tensor
    values_t: Tensor
    bias: Tensor
    seeing: Tensor | None


class FeedForwardChunk(NamedTuple):
    """A chunk of Rc rows on the way back: what went in and came out, and room for gradients, which the steps write."""

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
    out: Tensor  # (Rc, H*E)
    grad_q: Tensor  # (Rc, H*E)
    grad_own: Tensor | None  # (Rc, 2*G*E), zero for lone tokens; None where all are
    grad_normed: Tensor  # (Rc, D)


class FeedForwardSublayer:
    """Norm, linear, GEGLU, linear. Products with parameters are computed in `dtype`."""

    def __init__(self, norm: Norm, to_hidden: Linear, to_out: Linear, dtype: torch.dtype) -> None:
        self._norm, self._to_hidden, self._to_out, self._dtype = norm, to_hidden, to_out, dtype
        self._room = Room()

    def step(self, y: Tensor, at: Step) -> Tensor:
        """(R, D) to (R, D), without the residual; writes `at.hidden`."""
        self.hidden(y, at.hidden)
        return self._to_out.step(Geglu.step(at.hidden, at.keep_hidden))

    def hidden(self, y: Tensor, out: Tensor) -> None:
        """Writes what comes before the gate, of a step or of a chunk."""
        self._to_hidden.step(self._norm.step(y).to(self._dtype), out=out)

    def again(self, y: Tensor, hidden: Tensor) -> None:
        """Prepares a chunk of steps from its inputs (Rc, D) and hidden values (Rc, 8*D)."""
        normed, mean, rstd = self._norm.again(y)
        normed = normed.to(self._dtype)
        rows, width = hidden.shape[0], hidden.shape[1] // 2
        product = self._room.take("product", (rows, width), hidden)
        grad_hidden = self._room.take("grad_hidden", (rows, 2, width), hidden)
        grad_normed = self._room.take("grad_normed", (rows, y.shape[1]), normed)
        self.chunk = FeedForwardChunk(y, mean, rstd, normed, product, grad_hidden, grad_normed)

    def cut(self, hidden: Tensor, keep: Tensor | None, counts: list[int]) -> None:
        """Computes the chunk's products and their derivatives, and cuts it into steps of `counts` rows."""
        at = self.chunk
        slopes = self._room.take("slopes", tuple(at.grad_hidden.shape), hidden)
        Geglu.again(hidden, keep, at.product, slopes)
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
        self, norm: Norm, to_q: Linear, to_kv: Linear, to_out: Linear, attention: Attention, dtype: torch.dtype
    ) -> None:
        self._norm, self._to_q, self._to_kv, self._to_out = norm, to_q, to_kv, to_out
        self._attention, self._dtype = attention, dtype
        self._room = Room()

    def step(self, x: Tensor, window: Window, at: Step) -> Tensor:
        """(R, D) to (R, D), without the residual; writes `at.q`, `at.own`, `at.probabilities` and `at.out`."""
        self.project(x, at.q, at.own)
        self.attend(window, at)
        return self.output(at.out, window.seeing)

    def project(self, x: Tensor, q: Tensor, own: Tensor | None) -> None:
        """Writes queries and own keys and values, of a step or of a chunk."""
        normed = self._norm.step(x).to(self._dtype)
        self._to_q.step(normed, out=q)
        if own is not None:
            self._to_kv.step(normed, out=own)

    def attend(self, window: Window, at: Step) -> None:
        """Writes the probabilities and what they give."""
        attention, own = self._attention, self._own(at)
        p = attention.probabilities(attention.split(at.q), window.keys_t, own, window.bias, at.probabilities)
        attention.step(p if at.keep_probabilities is None else p * at.keep_probabilities, window.values, own, at.out)

    def output(self, out: Tensor, seeing: Tensor | None) -> Tensor:
        """What attention gave to (R, D), of a step or of a chunk."""
        y = self._to_out.step(out.to(self._dtype))
        return y if seeing is None else y * seeing

    def again(self, x: Tensor, own: Tensor | None, out: Tensor) -> None:
        """Prepares a chunk of steps from its inputs (Rc, D), and from the `own` and the `out` of all its steps."""
        normed, mean, rstd = self._norm.again(x)
        normed = normed.to(self._dtype)
        grad_q = self._room.take("grad_q", tuple(out.shape), normed)
        grad_normed = self._room.take("grad_normed", tuple(x.shape), normed)
        grad_own = None if own is None else normed.new_zeros(own.shape)
        self.chunk = AttentionChunk(x, mean, rstd, normed, out, grad_q, grad_own, grad_normed)

    def cut(self, at: list[Step], counts: list[int]) -> None:
        """Cuts the chunk into steps of `counts` rows, for `step_backward`."""
        chunk = self.chunk
        parts = (chunk.x, chunk.mean, chunk.rstd, chunk.grad_q, chunk.grad_normed)
        self._at, self._steps = at, list(zip(*(part.split(counts) for part in parts), strict=True))
        self._own_steps = None if chunk.grad_own is None else chunk.grad_own.split(counts)

    def step_backward(self, step: int, grad: Tensor, window: Window, grad_scores: Tensor, grad_out: Tensor) -> Tensor:
        """The gradient (R, D) by the input of the chunk's step number `step`, without the residual's.

        Args:
            grad: (R, D), zero for rows that see nothing.
            grad_scores: (BG, Q, n + own), written.
            grad_out: (R, H*E), written: the gradient of what attention gave.
        """
        x, mean, rstd, grad_q, grad_normed = self._steps[step]
        at, attention = self._at[step], self._attention
        self._to_out.step_backward(grad.to(self._dtype), out=grad_out)
        heads, own = attention.split(grad_out), self._own(at)
        attention.step_backward(heads, window.keys, window.values_t, own, at, grad_scores, grad_q)
        self._to_q.step_backward(grad_q, out=grad_normed)
        if own is not None and self._own_steps is not None:
            grad_own = attention.own_backward(heads, at, grad_scores, self._own_steps[step])
            grad_normed.add_(self._to_kv.step_backward(grad_own))
        return self._norm.step_backward(grad_normed.to(x.dtype), x, mean, rstd)

    def accumulate(self, grad: Tensor) -> None:
        """Adds the chunk's parameter gradients; grad (Rc, D) is that of its outputs, zero for rows that see nothing."""
        at = self.chunk
        self._to_out.accumulate(grad.to(self._dtype), at.out.to(self._dtype))
        self._to_q.accumulate(at.grad_q, at.normed)
        if at.grad_own is not None:
            self._to_kv.accumulate(at.grad_own, at.normed)
        self._norm.accumulate(at.grad_normed, at.x, at.mean, at.rstd)

    def _own(self, at: Step) -> Own:
        return None if at.own is None else self._attention.split_own(at.own)
