"""The definition: one segment after another, in plain autograd.

Fan et al. 2020, "Addressing Some Limitations of Transformers with Feedback Memory", section 3. Every other
implementation computes this function and is tested against it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers import ContextKeysValues, ContextView, MemoryView
from .attention_record import AttentionRecord
from .mask import AttentionMask, attention_mask
from .request import Walked, WalkRequest
from .stack import Stack


def stepwise(stack: Stack, request: WalkRequest) -> Walked:
    """Walks a sequence through time."""
    config, x = stack.config, request.x
    terms = stack.position(config.mem_len + config.seq_len)
    contexts, reach = _contexts(stack, request), stack.reach()
    keys, values = request.keys, request.values
    record = AttentionRecord(config, x, keys.shape[1]) if request.attention else None
    tops: list[Tensor] = []
    layer_states: list[Tensor] = []
    all_stored: list[Tensor] = []
    all_keys, all_values = [keys], [values]
    for segment, state in enumerate(x.split(config.seq_len, dim=1)):
        slots, length = min(keys.shape[1], reach), state.shape[1]
        mask = attention_mask(config, slots, slots, segment, length, request.visibility, x.device)
        seen = _blanked(stack, keys[:, keys.shape[1] - slots :], values[:, values.shape[1] - slots :], mask)
        states, weights = [state], None if record is None else list[Tensor]()
        for number, layer in enumerate(stack.layers):
            bank = min(number, config.banks - 1)
            to_kv = stack.to_kv if stack.to_kv is not None else layer.attention.to_kv
            of_bank = [tensor.unflatten(-1, (config.banks, -1, config.dim_head))[:, :, bank] for tensor in seen]
            memory = MemoryView(
                keys=of_bank[0],
                values=of_bank[1],
                to_kv=to_kv if length > 1 else None,
                distance=mask.distance,
                masked=mask.masked,
                terms=terms,
                has_keys=mask.has_keys,
                weights=weights,
            )
            states.append(layer(states[-1], memory, contexts[number], stack.norm))
        if record is not None and weights:
            record.add(segment * config.seq_len, torch.stack(weights, dim=1), mask)
        if request.layer_states:
            layer_states.append(torch.stack(states).detach())
        stored = stack.mix(states)
        new_keys, new_values = stack.project(stored)
        keys = torch.cat([keys, new_keys], dim=1)[:, -config.mem_len :]
        values = torch.cat([values, new_values], dim=1)[:, -config.mem_len :]
        for row, part in zip(
            (tops, all_keys, all_values, all_stored), (states[-1], new_keys, new_values, stored), strict=True
        ):
            row.append(part)
    walked = Walked(*(torch.cat(row, dim=1) for row in (tops, all_keys, all_values, all_stored)))
    return walked._replace(
        attention=None if record is None else record.attention,
        layer_states=torch.cat(layer_states, dim=2) if layer_states else None,
    )


def _contexts(stack: Stack, request: WalkRequest) -> list[ContextView | None]:
    """What each layer sees of the context."""
    context = request.context
    if context is None:
        return [None] * stack.config.depth
    if not isinstance(context, ContextKeysValues):
        context = stack.project_context(context)
    return [ContextView(keys, values, request.context_mask) for keys, values in zip(*context, strict=True)]


def _blanked(stack: Stack, keys: Tensor, values: Tensor, mask: AttentionMask) -> tuple[Tensor, Tensor]:
    """Keys and values, those of a zero state where a slot is blank."""
    if mask.blank is None:
        return keys, values
    zero = stack.project(stack.layer_weight.new_zeros(1, 1, stack.config.dim))
    blank = mask.blank.transpose(1, 2)
    return torch.where(blank, zero[0], keys), torch.where(blank, zero[1], values)
