"""The walk forward: segment after segment, each down all layers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..layers import dropout_mask
from .native.steps import ForwardSteps
from .plan import Segment
from .tape import NO_MASKS, Masks, Step, StepMasks, Values
from .walk import Walk


def forward(walk: Walk, states: Tensor | None, values: Values | None, masks: Masks) -> tuple[Tensor, Tensor, Tensor]:
    """Walks forward: the top states (B, T, D), keys and values (B, carried + T, G*E).

    Args:
        states: (L+1, T*B, D), written with the input of every layer and the top; None to keep nothing.
        values: written; None to keep nothing.
        masks: dropout masks, written.
    """
    plan, layout, x = walk.plan, walk.layout, walk.tensors.x
    segments, rows = plan.segments, plan.to_rows(x)
    if states is None:
        tops = torch.empty_like(rows)
    else:
        states[0].copy_(rows)
        tops = states[-1]
    steps = steps_of(walk, states, values, masks)
    places = layout.states(segments, states, x)
    for segment, state, step_masks in zip(segments, places, layout.step_masks(segments, masks), strict=True):
        _draw(walk, segment, step_masks)
        if states is None:
            state[0].copy_(rows[segment.rows])
        steps.step(segment, state)
        if states is None:
            tops[segment.rows] = state[-1]
    # A copy: the states stay as they are whatever happens to the result.
    return plan.from_rows(tops).clone(memory_format=torch.contiguous_format), *walk.windows.all_keys_values(
        walk.spec.out_dtype
    )


class Steps(Protocol):
    """Segments walked forward."""

    def step(self, segment: Segment, state: Tensor) -> None:
        """Takes a segment from `state[0]` to the top, and puts it into the memory.

        Args:
            state: (L+1, R, D), the segment's part of the states, or workspace: the same for all segments of one length.
        """


def steps_of(walk: Walk, states: Tensor | None, values: Values | None, masks: Masks) -> Steps:
    """The walk's steps, compiled where that applies; arguments are those of `forward`."""
    return (ForwardSteps if walk.spec.compiled else _Steps)(walk, states, values, masks)


class _Steps:
    """Segments walked by the ops."""

    def __init__(self, walk: Walk, states: Tensor | None, values: Values | None, masks: Masks) -> None:
        self._walk, self._masks = walk, masks
        self._steps: list[list[Step]] | None = None
        if values is not None or masks != NO_MASKS:
            self._steps = walk.layout.steps(walk.plan.segments, values, masks, walk.tensors.x)
        self._workspace: dict[int, list[Step]] = {}

    def _at(self, segment: Segment) -> list[Step]:
        if self._steps is not None:
            return self._steps[segment.index]
        if segment.length not in self._workspace:
            self._workspace[segment.length] = self._walk.layout.steps(
                [segment], None, self._masks, self._walk.tensors.x
            )[0]
        return self._workspace[segment.length]

    def step(self, segment: Segment, state: Tensor) -> None:
        walk, window, layers = self._walk, self._walk.windows.window(segment), state.unbind(0)
        for attention, feedforward, at, below, above in zip(
            walk.attentions, walk.feedforwards, self._at(segment), layers[:-1], layers[1:], strict=True
        ):
            middle = torch.add(below, attention.step(below, window, at), out=at.middle)
            torch.add(middle, feedforward.step(middle, at), out=above)
        walk.store(segment, state)


def _draw(walk: Walk, segment: Segment, step_masks: list[StepMasks]) -> None:
    """Draws a segment's dropout masks, in the order and the shapes of the definition."""
    spec, config = walk.spec, walk.config
    if not spec.attn_dropout and not spec.ff_dropout:
        return
    filled, local = walk.plan.filled(segment), segment.local
    for probabilities, hidden in step_masks:
        if probabilities is not None:
            probabilities.zero_()
            if filled or local:
                mask = probabilities[..., walk.plan.slots - filled :]
                shape = (walk.plan.batch, config.heads, segment.length, filled + local)
                mask.copy_(dropout_mask(mask.new_empty(shape), spec.attn_dropout).view(mask.shape))
        if hidden is not None:
            hidden.copy_(dropout_mask(hidden, spec.ff_dropout))
