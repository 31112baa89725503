"""The walk forward: segment after segment, each through all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_record import AttentionRecord
from ..layout.tape import Values
from ..ops.attention import AttentionOps
from ..request import Walked
from .protocols import ForwardSteps
from .walk import Walk


def forward(walk: Walk, make_steps: type[ForwardSteps], states: Tensor | None, values: Values) -> Walked:
    """Walks forward.

    Args:
        make_steps: what walks the steps.
        states: (L+1, T*B, D), written with the input of every layer and the top; None to save nothing. The result can
            have the states of all layers only with them, and attention only with what is saved of it.
        values: written: what is saved, and dropout masks; or masks alone.
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
    masks = {name: value for name, value in values.items() if name in walk.layout.masks}
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
    attention = _attention(walk, values) if walk.spec.attention else None
    all_states = _layer_states(walk, states) if walk.spec.layer_states else None
    if walk.buffer.stored is not None:
        return Walked(top, None, None, plan.from_rows(walk.buffer.stored), attention, all_states)
    return Walked(top, *walk.buffer.all_keys_values(walk.spec.out_dtype), None, attention, all_states)


def _attention(walk: Walk, values: Values) -> Tensor:
    """(B, L, H, T, carried + T), from what was saved."""
    plan, config = walk.plan, walk.config
    (ops,) = (stage.ops for stage in walk.stages if isinstance(stage.ops, AttentionOps))
    probabilities = values["attention.probabilities"]
    assert probabilities is not None
    record = AttentionRecord(config, walk.x, plan.carried)
    for segment, weights in zip(plan.segments, ops.weights(plan.segments, probabilities), strict=True):
        by_head = weights.view(config.depth, plan.batch, config.heads, segment.length, -1)
        record.add(segment.start, by_head.transpose(0, 1), walk.buffer.mask(segment))
    return record.attention


def _layer_states(walk: Walk, states: Tensor | None) -> Tensor:
    """(L+1, B, T, D), copies."""
    assert states is not None
    return torch.stack([walk.plan.from_rows(layer) for layer in states])


def _workspace(walk: Walk) -> list[Tensor]:
    """For each segment states (L+1, R, D); all of one length are the same place."""
    scratch = {
        count: walk.x.new_empty(walk.config.depth + 1, count, walk.config.dim) for count in set(walk.plan.row_counts)
    }
    return [scratch[count] for count in walk.plan.row_counts]
