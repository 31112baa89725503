"""Attention over the context as operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...config import FeedbackConfig
from ...layers import ContextKeysValues, CrossAttention, dropout_mask
from ...layers.attention import masked_score
from ..layout.buffer import Window
from ..layout.plan import Segment
from ..layout.precision import Precision
from ..layout.tape import Kept, Layout, Step
from ..layout.workspace import Workspace
from .attention_core import AttentionCore
from .chunk import Chunk
from .parameters import Parameters
from .sublayer import SublayerOps


class CrossAttentionOps(SublayerOps):
    """The cross-attention of all layers. The context's keys and values are made once.

    Attributes:
        grad_context: (B, N, C), complete after `finish`.
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
        batch, count, groups = *like.shape[:2], config.kv_heads or config.heads
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
            self._context, self.grad_context = context.flatten(0, 1).to(self._dtype), torch.zeros_like(context)
            rows = [to_kv.step(self._context).to(dtype) for to_kv in self._to_kv]
            pairs = [self._core.split_local(each) for each in rows]
            self._keys, self._values = map(list, zip(*pairs, strict=True))
        self._keys_t = [keys.transpose(1, 2) for keys in self._keys]
        self._values_t = [values.transpose(1, 2) for values in self._values]
        self._grad: list[tuple[Tensor, Tensor] | None] = [None] * len(names)
        empty = [torch.empty(0)] * len(names)
        self._inputs, self._buffers = list(empty), [dict[str, Tensor]() for _ in names]

    @classmethod
    def kept(cls, config: FeedbackConfig, precision: Precision, count: int = 0) -> Mapping[str, Kept]:
        """What is kept, where the context has `count` places."""
        inner, dtype = config.heads * config.dim_head, precision.attention
        return {
            "q": Kept("row", inner, dtype),  # scaled
            "probabilities": Kept("row", config.heads * count, dtype),
            "out": Kept("row", inner, dtype),
        }

    @classmethod
    def masks(cls, config: FeedbackConfig, precision: Precision, count: int = 0) -> Mapping[str, Kept]:
        """The dropout masks, where the context has `count` places."""
        return {"mask": Kept("row", config.heads * count, precision.attention)} if config.attn_dropout else {}

    def draw(self, segment: Segment, at: Step) -> None:
        mask = at.get("cross_attention.mask")
        if mask is not None:
            shape = (self._batch, self._heads, segment.length, self._bias.shape[2])
            drawn = dropout_mask(mask.new_empty(shape), self._dropout)
            mask.view(shape[0], shape[2], shape[1], shape[3]).copy_(drawn.transpose(1, 2))

    def step(self, layer: int, x: Tensor, window: Window, at: Step) -> Tensor:
        return self._forward(layer, x, at, "cross_attention.")

    def recompute(self, layer: int, x: Tensor, chunk: Chunk, windows: Sequence[Window], output: bool) -> Tensor | None:
        found = [
            self._forward(layer, rows, at[layer], "cross_attention.")
            for rows, at in zip(x.split(chunk.counts), chunk.steps, strict=True)
        ]
        return torch.cat(found) if output else None

    def _forward(self, layer: int, x: Tensor, at: Step, prefix: str) -> Tensor:
        q_rows, kept, out = at[prefix + "q"], at[prefix + "probabilities"], at[prefix + "out"]
        assert q_rows is not None
        assert kept is not None
        assert out is not None
        self.to_q[layer].step(x, out=q_rows)
        scores = torch.baddbmm(self._bias, self._core.split(q_rows), self._keys_t[layer])
        probabilities, mask = scores.softmax(-1), at.get(prefix + "mask")
        self._core.join(probabilities, kept)
        weights = probabilities if mask is None else probabilities * self._core.split(mask)
        self._core.step(weights, self._values[layer], None, out)
        return self._where_seen(self.to_out[layer].step(out.to(self._dtype)), [x.shape[0]])

    def _where_seen(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of steps of `counts` rows, zero where nothing of the context is seen."""
        if self._seen is None:
            return rows
        flags = [self._seen.repeat_interleave(count // self._batch, 0) for count in counts]
        return rows * torch.cat(flags)

    def prepare(self, layer: int, x: Tensor, chunk: Chunk) -> None:
        q, p = chunk.value("cross_attention.q")[layer], chunk.value("cross_attention.probabilities")[layer]
        self._inputs[layer] = x
        self._buffers[layer] = {
            "grad_q": self._workspace.get(f"grad_q.{layer}", tuple(q.shape), x),
            "grad_out": self._workspace.get(f"grad_out.{layer}", tuple(q.shape), q),
            "grad_scores": self._workspace.get(f"grad_scores.{layer}", tuple(p.shape), p),
        }

    def split(self, chunk: Chunk) -> None:
        self._at = chunk.steps
        self._steps = [
            [
                dict(zip(buffers, parts, strict=True))
                for parts in zip(*(b.split(chunk.counts) for b in buffers.values()), strict=True)
            ]
            for buffers in self._buffers
        ]

    def step_backward(self, layer: int, index: int, grad: Tensor, window: Window, out: Tensor) -> Tensor:
        at, core, buffers = self._at[index][layer], self._core, self._steps[layer][index]
        probabilities, mask = at["cross_attention.probabilities"], at.get("cross_attention.mask")
        assert probabilities is not None
        grad = self._where_seen(grad, [grad.shape[0]])
        self.to_out[layer].step_backward(grad.to(self._dtype), out=buffers["grad_out"])
        heads = core.split(buffers["grad_out"])
        split_mask = None if mask is None else core.split(mask)
        grad_p = core.grad_weights(heads, self._values_t[layer], None, split_mask)
        grad_scores = torch.empty_like(grad_p)
        core.softmax_backward(grad_p, core.split(probabilities).contiguous(), grad_scores)
        core.join(grad_scores, buffers["grad_scores"])
        core.grad_queries(grad_scores, self._keys[layer], None, buffers["grad_q"])
        return self.to_q[layer].step_backward(buffers["grad_q"], out=out)

    def accumulate(self, layer: int, grad: Tensor, chunk: Chunk) -> None:
        value, buffers, grad = chunk.value, self._buffers[layer], self._where_seen(grad, chunk.counts)
        self.to_out[layer].accumulate(grad.to(self._dtype), value("cross_attention.out")[layer].to(self._dtype))
        self.to_q[layer].accumulate(buffers["grad_q"], self._inputs[layer])
        weights, mask = value("cross_attention.probabilities")[layer], chunk.values.get("cross_attention.mask")
        weights = weights if mask is None else weights * mask[layer]
        grad_keys = self._over_steps(buffers["grad_scores"], value("cross_attention.q")[layer], chunk)
        grad_values = self._over_steps(weights, buffers["grad_out"], chunk)
        before = self._grad[layer]
        self._grad[layer] = (
            (grad_keys, grad_values) if before is None else (before[0].add_(grad_keys), before[1].add_(grad_values))
        )

    def _over_steps(self, factors: Tensor, operand: Tensor, chunk: Chunk) -> Tensor:
        """(BG, N, E): the sum over a chunk's queries of rows (Rc, H*N) times rows (Rc, H*E)."""
        total = None
        start = 0
        for length in dict.fromkeys(segment.length for segment in chunk.segments):
            rows = sum(segment.length * self._batch for segment in chunk.segments if segment.length == length)
            part = slice(start, start + rows)
            start += rows
            heads = [self._by_query(tensor[part], length) for tensor in (factors, operand)]
            found = torch.bmm(heads[0].transpose(1, 2), heads[1])
            total = found if total is None else total.add_(found)
        assert total is not None
        return total

    def _by_query(self, rows: Tensor, length: int) -> Tensor:
        """Rows (C*B*s, H*X) of C steps to (BG, C*q*s, X)."""
        parts = rows.view(
            -1, self._batch, length, self._groups, self._heads // self._groups, rows.shape[1] // self._heads
        )
        return parts.permute(1, 3, 0, 4, 2, 5).flatten(0, 1).flatten(1, 3)

    def finish(self) -> None:
        for to_kv, grads in zip(self._to_kv, self._grad, strict=True):
            if grads is None:
                continue
            batch, count = self.grad_context.shape[:2]
            pair = torch.stack([grad.view(batch, self._groups, count, -1) for grad in grads], dim=1)
            rows = pair.permute(0, 3, 1, 2, 4).reshape(batch * count, -1).to(self._dtype)  # (B*N, 2*G*E)
            to_kv.accumulate(rows, self._context)
            self.grad_context.add_(to_kv.step_backward(rows).view_as(self.grad_context))
