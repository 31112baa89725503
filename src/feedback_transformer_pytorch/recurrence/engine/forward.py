"""The walk forward: segment after segment, each through all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout.tape import Values
from ..request import Walked
from .protocols import ForwardSteps
from .walk import Walk


def forward(walk: Walk, make_steps: type[ForwardSteps], states: Tensor | None, values: Values | None) -> Walked:
    """Walks forward.

    Args:
        make_steps: what walks the steps.
        states: (L+1, T*B, D), written with the input of every layer and the top; None to save nothing.
        values: written: what is saved, and dropout masks; or masks alone; or None.
    """
    plan, x = walk.plan, walk.x
    segments, rows = plan.segments, plan.to_rows(x)
    if states is None:
        tops = torch.empty_like(rows)
        places = _workspace(walk)
    else:
        states[0].copy_(rows)
        tops = states[-1]
        places = list(states.split(plan.row_counts, dim=1))
    masks = {name: value for name, value in (values or {}).items() if name in walk.layout.masks}
    steps = make_steps(walk, states, values)
    for segment, state, step_masks in zip(segments, places, walk.layout.steps(segments, masks), strict=True):
        walk.draw(segment, step_masks)
        if states is None:
            state[0].copy_(rows[segment.rows])
        steps.step(segment, state)
        if states is None:
            tops[segment.rows] = state[-1]
    # A copy: the states stay as they are whatever happens to the result.
    top = plan.from_rows(tops).clone(memory_format=torch.contiguous_format)
    if walk.buffer.stored is not None:
        return Walked(top, None, None, plan.from_rows(walk.buffer.stored))
    return Walked(top, *walk.buffer.all_keys_values(walk.spec.out_dtype), None)


def _workspace(walk: Walk) -> list[Tensor]:
    """For each segment states (L+1, R, D); all of one length are the same place."""
    scratch = {
        count: walk.x.new_empty(walk.config.depth + 1, count, walk.config.dim) for count in set(walk.plan.row_counts)
    }
    return [scratch[count] for count in walk.plan.row_counts]
