"""The definition: one segment after another, in plain autograd.

Fan et al. 2020, "Addressing Some Limitations of Transformers with Feedback Memory", section 3. Every other
implementation computes this function and is tested against it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers import Context
from ..memory import Memory
from ..segments import Visibility
from .stack import Stack
from .window import view


def stepwise(
    stack: Stack, x: Tensor, memory: Memory, visibility: Visibility | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Walks x through time.

    Args:
        stack: the parameters.
        x: (B, T, D), embeddings; segments of S tokens, the last may be shorter.
        memory: n <= M slots that precede x.
        visibility: None when every row sees every slot.

    Returns:
        states (B, T, D) of the top layer, and the keys and values (B, n+T, G*E) of the memory and of all tokens.
    """
    config = stack.config
    by_distance = stack.position(config.mem_len + config.seq_len)
    keys, values, tops = [memory.keys], [memory.values], []
    window_keys, window_values = memory
    for segment, state in enumerate(x.split(config.seq_len, dim=1)):
        slots, length = window_keys.shape[1], state.shape[1]
        seen = view(config, slots, slots, segment, length, visibility, x.device)
        context = Context(
            keys=window_keys.unflatten(-1, (-1, config.dim_head)),
            values=window_values.unflatten(-1, (-1, config.dim_head)),
            local=length > 1,
            bias=seen.bias(by_distance.bias),
            vectors=None if by_distance.vectors is None else by_distance.vectors[seen.distance],
            has_keys=seen.has_keys,
        )
        states = [state]
        for block in stack.layers:
            states.append(block(states[-1], context, stack.to_kv))
        tops.append(states[-1])
        new_keys, new_values = stack.to_kv(stack.mix(states)).chunk(2, dim=-1)
        keys.append(new_keys)
        values.append(new_values)
        window_keys = torch.cat([window_keys, new_keys], dim=1)[:, -config.mem_len :]
        window_values = torch.cat([window_values, new_values], dim=1)[:, -config.mem_len :]
    return torch.cat(tops, dim=1), torch.cat(keys, dim=1), torch.cat(values, dim=1)
