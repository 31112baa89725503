"""The walk back: the steps' input gradients one after another, all else in bulk, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .chunk import Chunk
from .native.steps import BackwardSteps
from .ops import KeyValueGradient
from .plan import Segment
from .tape import Masks, Values
from .walk import Walk
from .workspace import Workspace


def backward(
    walk: Walk, grads: Sequence[Tensor | None], states: Tensor, values: Values | None, masks: Masks
) -> list[Tensor | None]:
    """Walks backward: the gradients of all inputs in their flat order, None where none is needed.

    Args:
        grads: of the three results of `forward`; None for zero.
        states, values, masks: what `forward` wrote.
    """
    return _BackwardWalk(walk, grads[1], grads[2]).run(grads[0], states, values, masks)


class _BackwardWalk:
    def __init__(self, walk: Walk, grad_keys: Tensor | None, grad_values: Tensor | None) -> None:
        self.walk, self.layout, self.plan = walk, walk.layout, walk.plan
        self.memory = KeyValueGradient(walk.windows.gradient(grad_keys, grad_values, walk.wide), walk.plan.slots)
        self.bias = torch.zeros_like(walk.windows.by_distance)
        self.workspace = Workspace()
        self.mix = None if walk.mix_weight is None else torch.zeros_like(walk.mix_weight)
        self.steps = (BackwardSteps if walk.spec.compiled else _Steps)(walk, self.memory, self.bias)

    def run(self, grad_tops: Tensor | None, states: Tensor, values: Values | None, masks: Masks) -> list[Tensor | None]:
        walk, plan, inputs = self.walk, self.plan, self.walk.tensors
        top_rows = torch.zeros_like(states[0]) if grad_tops is None else plan.to_rows(grad_tops).contiguous()
        grad_x = torch.empty_like(states[0])
        for blocks in reversed(plan.chunks):
            chunk = self._chunk([segment for block in blocks for segment in block], top_rows, states, values, masks)
            self._walk_chunk(blocks, chunk)
            self._accumulate(chunk)
            grad_x[chunk.segments[0].rows.start : chunk.segments[-1].rows.stop] = chunk.grad_states[0]
        self.steps.finish()
        grad_keys, grad_values = walk.windows.carried_gradient(self.memory.total, inputs.keys.dtype)
        found = [plan.from_rows(grad_x), grad_keys, grad_values, self._position(), self._layer_weight()]
        found.append(walk.to_kv.gradients[0])
        for op in (op for block in walk.blocks for op in block):
            found += op.gradients
        return [grad if wants else None for grad, wants in zip(found, walk.needs_grad, strict=True)]

    def _position(self) -> Tensor | None:
        if self.walk.position is not None:
            return self.walk.position.gradient
        table = self.walk.tensors.position
        found = torch.zeros_like(table, dtype=self.bias.dtype)
        return found.index_add_(0, self.walk.buckets, self.bias.t()).to(table.dtype)

    def _layer_weight(self) -> Tensor | None:
        mix = self.walk.mix_weight
        return None if mix is None or self.mix is None else mix * (self.mix - (mix * self.mix).sum())

    def _chunk(
        self, segments: list[Segment], grad_tops: Tensor, states: Tensor, values: Values | None, masks: Masks
    ) -> Chunk:
        layout, every = self.layout, self.plan.segments
        rows = slice(segments[0].rows.start, segments[-1].rows.stop)
        states, masks = states[:, rows], masks.part(layout, segments, every)
        values_here = layout.values(segments, states) if values is None else values.part(layout, segments, every)
        if values is None:
            self._recompute(segments, states, values_here, masks)
        width = 2 * self.walk.config.kv_dim
        mixed = self.walk.mix(states)
        stored, *moments = (mixed,) if self.walk.memory_norm is None else self.walk.memory_norm.recompute(mixed)
        return Chunk(
            segments=segments,
            states=states,
            mixed=mixed,
            stored=stored.to(layout.precision.products),
            moments=(moments[0], moments[1]) if moments else None,
            values=values_here,
            masks=masks,
            grad_tops=grad_tops[rows],
            grad_states=self.workspace.get("states", tuple(states.shape), states),
            grad_middles=self.workspace.get("middles", tuple(values_here.middle.shape), states),
            grad_mixed=self.workspace.get("mixed", tuple(states.shape[1:]), states),
            grad_kv=self.workspace.get("kv", (states.shape[1], width), states, layout.precision.products),
        )

    def _recompute(self, segments: list[Segment], states: Tensor, values: Values, masks: Masks) -> None:
        """Recomputes a chunk's values from its states: products in bulk, attention step by step."""
        walk, steps = self.walk, self.layout.steps(segments, values, masks, states)
        windows = walk.windows.windows(segments)
        for layer, (attention, feedforward) in enumerate(zip(walk.attentions, walk.feedforwards, strict=True)):
            attention.project(states[layer], values.q[layer], None if values.local is None else values.local[layer])
            for window, at in zip(windows, steps, strict=True):
                attention.attend(window, at[layer])
            torch.add(states[layer], attention.output(values.out[layer], None), out=values.middle[layer])
            for window, segment, at in zip(windows, segments, steps, strict=True):
                if window.has_keys is not None:
                    start = segment.rows.start - segments[0].rows.start
                    below = states[layer, start : start + at[layer].middle.shape[0]]
                    torch.where(window.has_keys, at[layer].middle, below, out=at[layer].middle)
            feedforward.hidden(values.middle[layer], values.hidden[layer])

    def _walk_chunk(self, blocks: list[list[Segment]], chunk: Chunk) -> None:
        walk, index = self.walk, len(chunk.segments)
        for layer, (attention, feedforward) in enumerate(zip(walk.attentions, walk.feedforwards, strict=True)):
            local = None if chunk.values.local is None else chunk.values.local[layer]
            attention.prepare(chunk.states[layer], chunk.values.q[layer], local, chunk.values.out[layer])
            feedforward.prepare(chunk.values.middle[layer], chunk.values.hidden[layer])
        self.steps.begin(chunk)
        groups = self.memory.total.shape[1]
        for block in reversed(blocks):
            length = block[0].length
            queries = self.plan.batch * walk.config.heads // groups * length
            self.memory.begin(block[0].start, len(block), length, len(walk.attentions), queries, chunk.values.q)
            for place in reversed(range(len(block))):
                index -= 1
                self.steps.step(block[place], place, index)
            self.steps.end_block(block[0])

    def _accumulate(self, chunk: Chunk) -> None:
        """Adds a chunk's parameter gradients."""
        walk = self.walk
        for layer, (attention, feedforward) in enumerate(zip(walk.attentions, walk.feedforwards, strict=True)):
            feedforward.accumulate(chunk.grad_states[layer + 1])
            attention.accumulate(chunk.grad_middles[layer])
        walk.to_kv.accumulate(chunk.grad_kv, chunk.stored)
        if self.mix is not None:
            # What the layers have in common cancels in the softmax: so `sum`, which adds in pairs, and no dot product.
            grad, product = chunk.grad_mixed, self.workspace.get("mix", tuple(chunk.grad_mixed.shape), chunk.grad_mixed)
            self.mix.add_(torch.stack([torch.mul(state, grad, out=product).sum() for state in chunk.states]))


class _Steps:
    """Segments walked back by the ops."""

    def __init__(self, walk: Walk, memory: KeyValueGradient, bias: Tensor) -> None:
        """Sets up; `bias` (H, M+S) is what the gradients of the biases are added to."""
        self._walk, self._memory, self._bias, self._workspace = walk, memory, bias, Workspace()
        mix = walk.mix_weight
        self._mix = None if mix is None else mix.to(walk.tensors.x.dtype).unbind(0)

    def begin(self, chunk: Chunk) -> None:
        """Cuts a chunk, which the sub-layers have prepared, into steps."""
        walk, layout = self._walk, self._walk.layout
        counts = [segment.rows.stop - segment.rows.start for segment in chunk.segments]
        steps, mask = layout.steps(chunk.segments, chunk.values, chunk.masks, chunk.states), chunk.masks.hidden
        for layer, (attention, feedforward) in enumerate(zip(walk.attentions, walk.feedforwards, strict=True)):
            attention.split([at[layer] for at in steps], counts)
            feedforward.split(chunk.values.hidden[layer], None if mask is None else mask[layer], counts)
        dropped = chunk.values.probabilities
        if chunk.masks.probabilities is not None:
            dropped = dropped * chunk.masks.probabilities
        self._parts = [
            _StepGradients(*part)
            for part in zip(
                chunk.grad_tops.split(counts),
                chunk.grad_states.split(counts, dim=1),
                chunk.grad_middles.split(counts, dim=1),
                chunk.grad_mixed.split(counts),
                chunk.grad_kv.split(counts),
                self._mixes(chunk, counts),
                chunk.values.q.split(counts, dim=1),
                layout.scores(chunk.segments, dropped),
                strict=True,
            )
        ]

    @staticmethod
    def _mixes(chunk: Chunk, counts: list[int]) -> list[tuple[Tensor, Tensor, Tensor] | None]:
        if chunk.moments is None:
            return [None] * len(counts)
        mean, rstd = chunk.moments
        return list(zip(chunk.mixed.split(counts), mean.split(counts), rstd.split(counts), strict=True))

    def step(self, segment: Segment, place: int, index: int) -> None:
        """Walks one segment, number `place` of its block and `index` of its chunk, down all layers."""
        walk, windows, mix, part = self._walk, self._walk.windows, self._mix, self._parts[index]
        window = windows.window(segment)
        slots = self._memory.slot(place).unflatten(1, (walk.plan.batch, -1))
        windows.as_slots(segment, part.kv).copy_(slots)
        walk.to_kv.step_backward(part.kv, out=part.mixed)
        if walk.memory_norm is not None and part.mix is not None:
            part.mixed.copy_(walk.memory_norm.step_backward(part.mixed, *part.mix))
        layers, middles = part.states.unbind(0), part.middles.unbind(0)
        grad_out = self._workspace.get("grad_out", tuple(part.q.shape), part.q)
        grad_scores = self._workspace.get("grad_scores", tuple(part.probabilities.shape), part.probabilities)
        grad = torch.add(part.tops, part.mixed if mix is None else part.mixed * mix[-1], out=layers[-1])
        for layer in reversed(range(len(middles))):
            grad_ff = walk.feedforwards[layer].step_backward(index, grad)
            if window.has_keys is None:
                middle = through = torch.add(grad, grad_ff, out=middles[layer])
            else:
                middle = grad + grad_ff
                through = torch.mul(middle, window.has_keys, out=middles[layer])
            grad_attention = walk.attentions[layer].step_backward(
                index, through, window, grad_scores[layer], grad_out[layer]
            )
            grad = torch.add(middle, grad_attention, out=layers[layer])
            if mix is not None:
                grad.addcmul_(part.mixed, mix[layer])
        if walk.position is None:
            windows.add_bias_gradient(segment, grad_scores, self._bias)
        self._memory.add(
            place,
            grad_scores,
            part.probabilities,
            windows.as_heads(segment, part.q),
            windows.as_heads(segment, grad_out),
        )

    def end_block(self, segment: Segment) -> None:
        """Gives the slots before a block, whose first segment was the last step, the gradients from all its queries."""
        self._memory.end()

    def finish(self) -> None:
        """Does what is left to do after the last step: nothing."""


class _StepGradients(NamedTuple):
    """One segment's part of a chunk."""

    tops: Tensor
    states: Tensor
    middles: Tensor
    mixed: Tensor
    kv: Tensor
    mix: tuple[Tensor, Tensor, Tensor] | None  # what was mixed (R, D), and the moments (R, 1)
    q: Tensor  # (L, R, H*E)
    probabilities: Tensor  # (L, BG, Q, n + local), after dropout
