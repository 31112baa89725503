"""The steps of both directions by operations of torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..layout.plan import Segment
from ..layout.tape import Step, Values
from ..ops.chunk import Chunk
from ..ops.key_value_gradient import KeyValueGradient
from .protocols import StoredGradients
from .walk import Walk


class TorchForwardSteps:
    """Segments walked forward; see `ForwardSteps`."""

    def __init__(self, walk: Walk, states: Tensor | None, values: Values | None) -> None:
        self._walk, self._values = walk, values
        self._steps: list[list[Step]] | None = None
        self._inputs = [f"{stage.name}.input" for stage in walk.stages[1:]]
        if values:
            self._steps = walk.layout.steps(walk.plan.segments, values)
        self._workspace: dict[int, list[Step]] = {}

    def _at(self, segment: Segment) -> list[Step]:
        """The views of a segment; what is not saved is written to the same place by all segments of one length."""
        steps = [] if self._steps is None else self._steps[segment.index]
        if steps and len(steps[0]) > len(self._walk.layout.masks):
            return steps
        if segment.length not in self._workspace:
            layout = self._walk.layout
            scratch = layout.empty(layout.saved, [segment], self._walk.x)
            self._workspace[segment.length] = layout.steps([segment], scratch)[0]
        scratch_steps = self._workspace[segment.length]
        return [{**step, **masks} for step, masks in zip(scratch_steps, steps, strict=True)] if steps else scratch_steps

    def step(self, segment: Segment, state: Tensor) -> None:
        walk, window, layers = self._walk, self._walk.buffer.window(segment), state.unbind(0)
        for layer, at in enumerate(self._at(segment)):
            x = layers[layer]
            outs = [*(at[name] for name in self._inputs), layers[layer + 1]]
            for stage, out in zip(walk.stages, outs, strict=True):
                assert out is not None
                x = stage.step(layer, x, window, at, out)
        walk.store(segment, state)


class _StepGradients(NamedTuple):
    """One segment's part of a chunk."""

    tops: Tensor
    stored: Tensor | None
    mixed: Tensor
    kv: Tensor
    mix: tuple[Tensor, Tensor, Tensor] | None  # what was mixed (R, D), and the moments (R, 1)
    inputs: list[list[Tensor]]  # by layer and sub-layer, the gradients of the inputs
    top: Tensor


class TorchBackwardSteps:
    """Segments walked in reverse time order; see `BackwardSteps`."""

    def __init__(self, walk: Walk, memory: KeyValueGradient, grad_bias: Tensor | None) -> None:
        self._walk, self._memory = walk, memory
        for stage in walk.stages:
            stage.ops.begin_backward(memory, grad_bias)
        mix = walk.mix_weight
        self._mix = None if mix is None else mix.to(walk.x.dtype).unbind(0)

    def begin(self, chunk: Chunk, stored: StoredGradients) -> None:
        walk, counts = self._walk, chunk.counts
        for stage in walk.stages:
            stage.split(chunk)
        by_input = [
            [chunk.grad_input(stage.name, layer).split(counts) for stage in walk.stages]
            for layer in range(walk.config.depth)
        ]
        grad_stored = [None] * len(counts) if stored.grad_stored is None else stored.grad_stored.split(counts)
        self._parts = [
            _StepGradients(*part)
            for part in zip(
                stored.grad_tops.split(counts),
                grad_stored,
                stored.grad_mixed.split(counts),
                stored.grad_kv.split(counts),
                self._mixes(stored, counts),
                [[[parts[index] for parts in layer] for layer in by_input] for index in range(len(counts))],
                chunk.grad_states[-1].split(counts),
                strict=True,
            )
        ]

    @staticmethod
    def _mixes(stored: StoredGradients, counts: list[int]) -> list[tuple[Tensor, Tensor, Tensor] | None]:
        if stored.moments is None:
            return [None] * len(counts)
        mean, rstd = stored.moments
        return list(zip(stored.mixed.split(counts), mean.split(counts), rstd.split(counts), strict=True))

    def step(self, segment: Segment, place: int, index: int) -> None:
        walk, mix, part = self._walk, self._mix, self._parts[index]
        buffer, window = walk.buffer, walk.buffer.window(segment)
        slots = self._memory.slot(place).unflatten(1, (walk.config.banks, walk.plan.batch, -1))
        buffer.as_slots(segment, part.kv).copy_(slots)
        walk.project.step_backward(part.kv, out=part.mixed)
        if walk.memory_norm is not None and part.mix is not None:
            part.mixed.copy_(walk.memory_norm.step_backward(part.mixed, *part.mix))
        if part.stored is not None:
            part.mixed.add_(part.stored)
        for stage in walk.stages:
            stage.ops.begin_step(index)
        grad = torch.add(part.tops, part.mixed if mix is None else part.mixed * mix[-1], out=part.top)
        for layer in reversed(range(walk.config.depth)):
            for stage, out in zip(reversed(walk.stages), reversed(part.inputs[layer]), strict=True):
                grad = stage.step_backward(layer, index, grad, window, out)
            if mix is not None:
                grad.addcmul_(part.mixed, mix[layer])
        for stage in walk.stages:
            stage.ops.end_step(segment, place, index, window)

    def end_strip(self, segment: Segment) -> None:
        self._memory.end()

    def finish(self) -> None:
        for stage in self._walk.stages:
            stage.ops.finish()
