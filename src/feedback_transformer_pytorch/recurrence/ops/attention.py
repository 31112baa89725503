"""Attention over the memory and over the segment as operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ...config import FeedbackConfig
from ...layers import Attention, dropout_mask
from ..layout.buffer import MemoryBuffer, Window
from ..layout.plan import Plan, Segment
from ..layout.precision import Precision
from ..layout.tape import Layout, Saved, Step
from ..layout.workspace import Workspace
from .attention_core import AttentionCore, LocalKeysValues
from .chunk import Chunk
from .key_value_gradient import KeyValueGradient
from .parameters import Parameters
from .scores import ScoreOps
from .span import SpanOps
from .sublayer import SublayerOps


class AttentionOps(SublayerOps):
    """The attention of all layers.

    Attributes:
        inputs: by layer (Rc, D), of a prepared chunk; likewise the gradients that steps write: grad_q (Rc, H*E), of
            scaled queries; grad_local (Rc, 2*G*E), zero for single tokens, or None where all are; grad_columns, for
            each term (Rc, H*columns).
    """

    name = "attention"

    def __init__(
        self,
        parameters: Parameters,
        modules: Sequence[Attention],
        names: Sequence[str],
        layout: Layout,
        buffer: MemoryBuffer,
        terms: Sequence[ScoreOps],
        spans: SpanOps | None,
        grad_zero: Tensor | None,
    ) -> None:
        """Sets up.

        Args:
            grad_zero: (K*2*G*E,), what the gradients of a zero state's keys and values are added to; None for none.
        """
        config, self._grad_zero = layout.config, grad_zero
        self._groups = config.groups
        self.to_q = [parameters.linear(f"{name}.to_q", config.dim_head**-0.5) for name in names]
        shares = config.kv == "shared"
        self._to_kv = [parameters.linear("to_kv" if shares else f"{name}.to_kv") for name in names]
        self.to_out = [parameters.linear(f"{name}.to_out") for name in names]
        self._core = AttentionCore(layout.plan.batch, self._groups, config.heads // self._groups)
        self._layout, self._buffer, self.terms, self._spans = layout, buffer, terms, spans
        self._dropout, self._dtype = config.attn_dropout, parameters.precision.products
        self._heads, self._banks = config.heads, config.banks
        self._workspace, self._of_windows = Workspace(), dict[int, list[Tensor]]()
        empty = [torch.empty(0)] * len(names)
        self.inputs: list[Tensor] = list(empty)
        self.grad_q: list[Tensor] = list(empty)
        self.grad_local: list[Tensor | None] = list(empty)
        self.grad_columns: list[list[Tensor]] = [[] for _ in names]

    @classmethod
    def saved(cls, config: FeedbackConfig, precision: Precision) -> Mapping[str, Saved]:
        inner, dtype = config.heads * config.dim_head, precision.attention
        return {
            "q": Saved("row", inner, dtype),  # scaled
            "local": Saved("local row", 2 * config.kv_dim, dtype),  # keys and values of the segment itself
            "probabilities": Saved("score", 0, dtype),
            "out": Saved("row", inner, dtype),
        }

    @classmethod
    def masks(cls, config: FeedbackConfig, precision: Precision, context_tokens: int) -> Mapping[str, Saved]:
        return {"mask": Saved("score", 0, precision.attention)} if config.attn_dropout else {}

    def draw(self, segment: Segment, at: Step) -> None:
        mask = at.get("attention.mask")
        if mask is None:
            return
        plan: Plan = self._layout.plan
        filled, local = plan.filled(segment), segment.local
        mask.zero_()
        if filled or local:
            seen = mask[..., plan.slots - filled :]
            shape = (plan.batch, self._heads, segment.length, filled + local)
            seen.copy_(dropout_mask(seen.new_empty(shape), self._dropout).view(seen.shape))

    def step(self, layer: int, x: Tensor, window: Window, at: Step) -> Tensor:
        self._project(layer, x, at["attention.q"], at["attention.local"])
        self._attend(layer, window, at)
        return self._output(layer, at["attention.out"], window.has_keys)

    def recompute(self, layer: int, x: Tensor, chunk: Chunk, windows: Sequence[Window], output: bool) -> Tensor | None:
        local = chunk.values["attention.local"]
        self._project(layer, x, chunk.value("attention.q")[layer], None if local is None else local[layer])
        for window, at in zip(windows, chunk.steps, strict=True):
            self._attend(layer, window, at[layer])
        if not output:
            return None
        return self._output(layer, chunk.value("attention.out")[layer], chunk.has_keys)

    def _project(self, layer: int, x: Tensor, q: Tensor | None, local: Tensor | None) -> None:
        """Writes queries, and the segment's keys and values, of a step or of a chunk."""
        self.to_q[layer].step(x, out=q)
        if local is not None:
            self._to_kv[layer].step(x, out=local)

    def _attend(self, layer: int, window: Window, at: Step) -> None:
        """Writes the probabilities and what they give."""
        core, local, bank = self._core, self._local(at), layer if self._banks > 1 else 0
        q_rows, probabilities, out = at["attention.q"], at["attention.probabilities"], at["attention.out"]
        assert q_rows is not None
        assert probabilities is not None
        assert out is not None
        q, bias = core.split(q_rows), window.bias
        for term, of_window in zip(self.terms, self._terms_of(window), strict=True):
            bias = bias + term.step(q, of_window)
        weights: Tensor
        if self._spans is None:
            weights = core.probabilities(q, window.keys_t[bank], local, bias, probabilities)
        else:
            soft_mask, beyond = self._span_of(window)
            core.probabilities(q, window.keys_t[bank], local, bias + beyond[layer], probabilities)
            weights = self._spans.step(probabilities, soft_mask[layer])
        mask = at.get("attention.mask")
        core.step(weights if mask is None else weights * mask, window.values[bank], local, out)

    def _output(self, layer: int, out: Tensor | None, has_keys: Tensor | None) -> Tensor:
        """What attention gave to (R, D), of a step or of a chunk."""
        assert out is not None
        y = self.to_out[layer].step(out.to(self._dtype))
        return y if has_keys is None else y * has_keys

    def _local(self, at: Step) -> LocalKeysValues:
        local = at["attention.local"]
        return None if local is None else self._core.split_local(local)

    def _terms_of(self, window: Window) -> list[Tensor]:
        """For each term what it needs of a window's distances."""
        if not self.terms:
            return []
        found = None if window.length is None else self._of_windows.get(window.length)
        if found is None:
            assert window.distance is not None
            found = [term.of_window(window.distance) for term in self.terms]
            if window.length is not None:
                self._of_windows[window.length] = found
        return found

    def _span_of(self, window: Window) -> tuple[Tensor, Tensor]:
        assert self._spans is not None
        assert window.distance is not None
        assert window.length is not None
        return self._spans.window(window.distance, window.length)

    def weights(self, segments: Sequence[Segment], probabilities: Tensor) -> Iterator[Tensor]:
        """For each segment (L, BG, Q, n + local), what its values are multiplied with but for dropout.

        Args:
            probabilities: what is saved of these segments.
        """
        for segment, scores in zip(segments, self._layout.scores(segments, probabilities), strict=True):
            if self._spans is None:
                yield scores
            else:
                distance = self._buffer.distance_of_queries(segment)
                yield self._spans.step(scores, self._spans.window(distance, segment.length)[0])

    def begin_backward(self, memory: KeyValueGradient, grad_bias: Tensor | None) -> None:
        self._memory, self._grad_bias = memory, grad_bias

    def prepare(self, layer: int, x: Tensor, chunk: Chunk) -> None:
        get, q, local = self._workspace.get, chunk.value("attention.q"), chunk.values["attention.local"]
        self.inputs[layer] = x
        self.grad_q[layer] = get(f"grad_q.{layer}", tuple(q.shape[1:]), x)
        self.grad_local[layer] = None if local is None else x.new_zeros(local.shape[1:])
        self.grad_columns[layer] = [
            get(f"grad_columns.{number}.{layer}", (q.shape[1], self._heads * term.columns), q)
            for number, term in enumerate(self.terms)
        ]

    def split(self, chunk: Chunk) -> None:
        counts = chunk.counts
        self._at, self._rows = chunk.steps, chunk.value("attention.q").split(counts, dim=1)
        self._grad_q = [grad.split(counts) for grad in self.grad_q]
        self._grad_local = [None if grad is None else grad.split(counts) for grad in self.grad_local]
        self._grad_columns = [[grad.split(counts) for grad in grads] for grads in self.grad_columns]
        self._scores = self._dropped_weights(chunk)

    def _dropped_weights(self, chunk: Chunk) -> list[Tensor]:
        """For each segment of a chunk (L, BG, Q, n + local), what its values were multiplied with."""
        weights = list(self.weights(chunk.segments, chunk.value("attention.probabilities")))
        mask = chunk.values.get("attention.mask")
        if mask is None:
            return weights
        masks = self._layout.scores(chunk.segments, mask)
        return [p * m for p, m in zip(weights, masks, strict=True)]

    def begin_step(self, index: int) -> None:
        rows, weights = self._rows[index], self._scores[index]
        self._grad_out = self._workspace.get("grad_out", tuple(rows.shape), rows)
        self._grad_scores = self._workspace.get("grad_scores", tuple(weights.shape), weights)

    def step_backward(self, layer: int, index: int, grad: Tensor, window: Window, out: Tensor) -> Tensor:
        at, core, bank = self._at[index][layer], self._core, layer if self._banks > 1 else 0
        grad_out, grad_scores, grad_q = self._grad_out[layer], self._grad_scores[layer], self._grad_q[layer][index]
        if window.has_keys is not None:
            grad = grad * window.has_keys
        self.to_out[layer].step_backward(grad.to(self._dtype), out=grad_out)
        heads, local = core.split(grad_out), self._local(at)
        grad_p = core.grad_weights(heads, window.values_t[bank], local, at.get("attention.mask"))
        probabilities = at["attention.probabilities"]
        assert probabilities is not None
        if self._spans is not None:
            assert window.length is not None
            soft_mask = self._span_of(window)[0][layer]
            grad_p = self._spans.step_backward(layer, window.length, grad_p, probabilities, soft_mask)
        core.softmax_backward(grad_p, probabilities, grad_scores)
        core.grad_queries(grad_scores, window.keys[bank], local, grad_q)
        for term, of_window, columns in zip(self.terms, self._terms_of(window), self._grad_columns[layer], strict=True):
            rows = core.join(term.step_backward(grad_scores, of_window), columns[index])
            term.add_query_gradient(rows, grad_q)
        self.to_q[layer].step_backward(grad_q, out=out)
        grad_local = self._grad_local[layer]
        if local is not None and grad_local is not None:
            q = at["attention.q"]
            assert q is not None
            weights = self._scores[index][layer]
            rows = core.grad_local(core.split(q), heads, grad_scores, weights, grad_local[index])
            out.add_(self._to_kv[layer].step_backward(rows))
        return out

    def end_step(self, segment: Segment, place: int, index: int, window: Window) -> None:
        """Gives the step's part to the gradients of keys, values and biases."""
        if self._grad_bias is not None:
            self._buffer.add_bias_gradient(segment, self._grad_scores, self._grad_bias)
        grad_scores, weights = self._grad_scores, self._scores[index]
        q, grad_out = (self._as_heads(segment, rows) for rows in (self._rows[index], self._grad_out))
        if window.blank is not None:
            grad_scores, weights = self._without_blank(grad_scores, weights, q, grad_out, window.blank)
        self._memory.add(place, grad_scores, weights, q, grad_out)

    def _without_blank(
        self, grad_scores: Tensor, weights: Tensor, q: Tensor, grad_out: Tensor, blank: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes the part of the blank slots (BG, n) to the gradient of a zero state's keys and values.

        Args and results are those of `KeyValueGradient.add`.
        """
        at_blank = blank[:, None].to(grad_scores.dtype)
        slots, layers = blank.shape[1], grad_scores.shape[0]
        if self._grad_zero is not None:
            target = self._grad_zero.view(self._banks, 2, self._groups, -1)
            for half, (factors, operand) in enumerate(((grad_scores, q), (weights, grad_out))):
                sums = (factors[..., :slots] * at_blank).sum(-1)  # (L, BG, Q)
                found = torch.einsum("lgq,lgqe->lge", sums, operand)
                found = found.view(self._banks, layers // self._banks, -1, self._groups, found.shape[-1]).sum((1, 2))
                target[:, half].add_(found)
        return grad_scores[..., :slots] * (1 - at_blank), weights[..., :slots] * (1 - at_blank)

    def _as_heads(self, segment: Segment, rows: Tensor) -> Tensor:
        """Rows (L, B*s, H*E) as heads (L, BG, Q, E)."""
        layers, batch, groups = rows.shape[0], self._layout.plan.batch, self._groups
        heads = rows.view(layers, batch, segment.length, groups, self._heads // groups, -1)
        return heads.permute(0, 1, 3, 4, 2, 5).reshape(layers, batch * groups, -1, heads.shape[-1])

    def accumulate(self, layer: int, grad: Tensor, chunk: Chunk) -> None:
        grad = grad if chunk.has_keys is None else grad * chunk.has_keys
        self.to_out[layer].accumulate(grad.to(self._dtype), chunk.value("attention.out")[layer].to(self._dtype))
        x, grad_local = self.inputs[layer], self.grad_local[layer]
        self.to_q[layer].accumulate(self.grad_q[layer], x)
        if grad_local is not None:
            self._to_kv[layer].accumulate(grad_local, x)
        for term, columns in zip(self.terms, self.grad_columns[layer], strict=True):
            term.accumulate(columns, chunk.value("attention.q")[layer])

    def finish(self) -> None:
        if self._spans is not None:
            for length, segment in {segment.length: segment for segment in self._layout.plan.segments}.items():
                self._spans.finish(self._buffer.distance(segment), length)
