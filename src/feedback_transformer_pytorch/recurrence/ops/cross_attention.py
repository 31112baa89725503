"""Attention over the context as operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...config import FeedbackConfig
from ...layers import ContextKeysValues, CrossAttention, dropout_mask
from ...layers.attention import masked_score
from ..layout.buffer import Window
from ..layout.plan import Segment
from ..layout.precision import Precision
from ..layout.tape import Layout, Saved, Step
from ..layout.workspace import Workspace
from .attention_core import AttentionCore
from .chunk import Chunk
from .key_value_gradient import KeyValueGradient
from .parameters import Parameters
from .sublayer import SublayerOps


class _Strip(NamedTuple):
    """A strip of a chunk: its steps `first` to `last`, each of `length` tokens, and their rows."""

    first: int
    last: int
    length: int
    rows: slice


class CrossAttentionOps(SublayerOps):
    """The cross-attention of all layers. The context's keys and values are made once.

    Since they do not change in time, the probabilities need not be saved: the backward pass recomputes those of a strip
    in one product. So what is saved of a row does not grow with the context.
    """

    name = "cross_attention"

    def __init__(
        self,
        parameters: Parameters,
        modules: Sequence[CrossAttention],
        names: Sequence[str],
        layout: Layout,
        context: Tensor | ContextKeysValues,
        mask: Tensor | None,
    ) -> None:
        """Sets up.

        Args:
            context: (B, N, C), or, for a forward walk only, its keys and values.
            mask: (B, N) bool, True at what is seen of it; None: all of it.
        """
        config, dtype = layout.config, parameters.precision.attention
        like = context.keys[0] if isinstance(context, ContextKeysValues) else context
        batch, count, groups = *like.shape[:2], config.groups
        self._core = AttentionCore(batch, groups, config.heads // groups)
        self._heads, self._batch, self._groups, self._layout = config.heads, batch, groups, layout
        self._dropout, self._dtype = config.attn_dropout, parameters.precision.products
        self._workspace = Workspace()
        self.to_q = [parameters.linear(f"{name}.to_q", config.dim_head**-0.5) for name in names]
        self._to_kv = [parameters.linear(f"{name}.to_kv", rows=batch * count) for name in names]
        self.to_out = [parameters.linear(f"{name}.to_out") for name in names]
        self._bias = like.new_zeros(batch * groups, 1, count, dtype=dtype)
        self._seen = None if mask is None else mask.any(1)[:, None]  # (B, 1), whether a row sees anything
        if mask is not None:
            self._bias.masked_fill_(~mask.repeat_interleave(groups, 0)[:, None], masked_score(dtype))
        if isinstance(context, ContextKeysValues):
            made = [[half.transpose(1, 2).flatten(0, 1).to(dtype) for half in halves] for halves in context]
            self._keys, self._values = made
        else:
            self._context, self._grad_context = context.flatten(0, 1).to(self._dtype), torch.zeros_like(context)
            rows = [to_kv.step(self._context).to(dtype) for to_kv in self._to_kv]
            pairs = [self._core.split_local(each) for each in rows]
            self._keys, self._values = map(list, zip(*pairs, strict=True))
        self._keys_t = [keys.transpose(1, 2) for keys in self._keys]
        self._values_t = [values.transpose(1, 2) for values in self._values]
        empty = [torch.empty(0)] * len(names)
        self._inputs, self._grad_q, self._grad_out = list(empty), list(empty), list(empty)
        self._probabilities, self._grad_scores = list(empty), list(empty)

    @classmethod
    def saved(cls, config: FeedbackConfig, precision: Precision) -> Mapping[str, Saved]:
        inner, dtype = config.heads * config.dim_head, precision.attention
        return {
            "q": Saved("row", inner, dtype),  # scaled
            "out": Saved("row", inner, dtype),
        }

    @classmethod
    def masks(cls, config: FeedbackConfig, precision: Precision, context_tokens: int) -> Mapping[str, Saved]:
        return {"mask": Saved("row", config.heads * context_tokens, precision.attention)} if config.attn_dropout else {}

    def draw(self, segment: Segment, at: Step) -> None:
        mask = at.get("cross_attention.mask")
        if mask is not None:
            shape = (self._batch, self._heads, segment.length, self._bias.shape[2])
            drawn = dropout_mask(mask.new_empty(shape), self._dropout)
            mask.view(shape[0], shape[2], shape[1], shape[3]).copy_(drawn.transpose(1, 2))

    def step(self, layer: int, x: Tensor, window: Window, at: Step) -> Tensor:
        q, out = at["cross_attention.q"], at["cross_attention.out"]
        assert q is not None
        assert out is not None
        self.to_q[layer].step(x, out=q)
        scores = torch.baddbmm(self._bias, self._core.split(q), self._keys_t[layer])
        weights, mask = scores.softmax(-1), at.get("cross_attention.mask")
        weights = weights if mask is None else weights * self._core.split(mask)
        self._core.step(weights, self._values[layer], None, out)
        return self._where_seen(self.to_out[layer].step(out.to(self._dtype)), [x.shape[0]])

    def recompute(self, layer: int, x: Tensor, chunk: Chunk, windows: Sequence[Window], output: bool) -> Tensor | None:
        found = [
            self.step(layer, rows, window, at[layer])
            for rows, window, at in zip(x.split(chunk.counts), windows, chunk.steps, strict=True)
        ]
        return torch.cat(found) if output else None

    def _where_seen(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of steps of `counts` rows, zero where nothing of the context is seen."""
        if self._seen is None:
            return rows
        flags = [self._seen.repeat_interleave(count // self._batch, 0) for count in counts]
        return rows * torch.cat(flags)

    def begin_backward(self, memory: KeyValueGradient, grad_bias: Tensor | None) -> None:
        wide = torch.promote_types(self._bias.dtype, torch.float32)
        pairs = zip(self._keys, self._values, strict=True)
        self._grad = [[torch.zeros_like(half, dtype=wide) for half in pair] for pair in pairs]  # by layer

    def prepare(self, layer: int, x: Tensor, chunk: Chunk) -> None:
        q = chunk.value("cross_attention.q")[layer]
        self._inputs[layer] = x
        self._grad_q[layer] = self._workspace.get(f"grad_q.{layer}", tuple(q.shape), x)
        self._grad_out[layer] = self._workspace.get(f"grad_out.{layer}", tuple(q.shape), q)

    def split(self, chunk: Chunk) -> None:
        self._chunk, self._strips = chunk, self._strips_of(chunk)
        self._step_grad_q = [rows.split(chunk.counts) for rows in self._grad_q]
        self._step_grad_out = [rows.split(chunk.counts) for rows in self._grad_out]

    def _strips_of(self, chunk: Chunk) -> list[_Strip]:
        """For each step of a chunk its strip."""
        found: list[_Strip] = []
        start = 0
        for segments in chunk.strips:
            first, length = len(found), segments[0].length
            stop = start + len(segments) * length * self._batch
            found += [_Strip(first, first + len(segments) - 1, length, slice(start, stop))] * len(segments)
            start = stop
        return found

    def begin_step(self, index: int) -> None:
        strip = self._strips[index]
        if index < strip.last:
            return
        steps = strip.last - strip.first + 1
        for layer, keys_t in enumerate(self._keys_t):
            q = self._by_query(self._chunk.value("cross_attention.q")[layer][strip.rows], strip.length)
            shape = (q.shape[0], q.shape[1], keys_t.shape[2])
            probabilities, grad_scores = (
                self._workspace.get(f"{name}.{layer}", shape, q) for name in ("probabilities", "grad_scores")
            )
            self._core.probabilities(q, keys_t, None, self._bias, probabilities)
            # (BG, steps, Q, N)
            self._probabilities[layer] = probabilities.unflatten(1, (steps, -1))
            self._grad_scores[layer] = grad_scores.unflatten(1, (steps, -1))

    def step_backward(self, layer: int, index: int, grad: Tensor, window: Window, out: Tensor) -> Tensor:
        core, place = self._core, index - self._strips[index].first
        probabilities = self._probabilities[layer][:, place].contiguous()
        mask = self._chunk.steps[index][layer].get("cross_attention.mask")
        grad_q, grad_out = self._step_grad_q[layer][index], self._step_grad_out[layer][index]
        grad = self._where_seen(grad, [grad.shape[0]])
        self.to_out[layer].step_backward(grad.to(self._dtype), out=grad_out)
        split_mask = None if mask is None else core.split(mask)
        grad_p = core.grad_weights(core.split(grad_out), self._values_t[layer], None, split_mask)
        grad_scores = torch.empty_like(grad_p)
        core.softmax_backward(grad_p, probabilities, grad_scores)
        self._grad_scores[layer][:, place] = grad_scores
        core.grad_queries(grad_scores, self._keys[layer], None, grad_q)
        return self.to_q[layer].step_backward(grad_q, out=out)

    def end_step(self, segment: Segment, place: int, index: int, window: Window) -> None:
        """At the end of a strip, gives its part to the gradients of the context's keys and values."""
        strip = self._strips[index]
        if index > strip.first:
            return
        mask, q = self._chunk.values.get("cross_attention.mask"), self._chunk.value("cross_attention.q")
        for layer, (grad_keys, grad_values) in enumerate(self._grad):
            weights = self._probabilities[layer].flatten(1, 2)
            if mask is not None:
                weights = weights * self._by_query(mask[layer][strip.rows], strip.length)
            for total, factors, rows in (
                (grad_keys, self._grad_scores[layer].flatten(1, 2), q[layer]),
                (grad_values, weights, self._grad_out[layer]),
            ):
                total.add_(torch.bmm(factors.transpose(1, 2), self._by_query(rows[strip.rows], strip.length)))

    def accumulate(self, layer: int, grad: Tensor, chunk: Chunk) -> None:
        grad, out = self._where_seen(grad, chunk.counts), chunk.value("cross_attention.out")[layer]
        self.to_out[layer].accumulate(grad.to(self._dtype), out.to(self._dtype))
        self.to_q[layer].accumulate(self._grad_q[layer], self._inputs[layer])

    def _by_query(self, rows: Tensor, length: int) -> Tensor:
        """Rows (C*B*s, H*X) of C steps to (BG, C*q*s, X)."""
        parts = rows.view(
            -1, self._batch, length, self._groups, self._heads // self._groups, rows.shape[1] // self._heads
        )
        return parts.permute(1, 3, 0, 4, 2, 5).flatten(0, 1).flatten(1, 3)

    def finish(self) -> None:
        batch, count = self._batch, self._bias.shape[2]
        for to_kv, grads in zip(self._to_kv, self._grad, strict=True):
            pair = torch.stack([grad.view(batch, self._groups, count, -1) for grad in grads], dim=1)
            rows = pair.permute(0, 3, 1, 2, 4).reshape(batch * count, -1).to(self._dtype)  # (B*N, 2*G*E)
            to_kv.accumulate(rows, self._context)
            self._grad_context.add_(to_kv.step_backward(rows).view_as(self._grad_context))

    def input_gradients(self) -> dict[str, Tensor]:
        return {"context": self._grad_context}
