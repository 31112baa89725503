"""The memories that go from update to update, and their form in a checkpoint.

In a checkpoint they are named tensors with one row for each stream, so that other processes can take over streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...baselines import HiddenMemory
from ...memory import Memory, StateMemory, memory_of

CarriedMemory = Memory | StateMemory | HiddenMemory


def without_slots(memory: CarriedMemory) -> CarriedMemory:
    """A memory of the same streams without slots, which a model takes for a fresh one."""
    if isinstance(memory, Memory):
        return Memory(memory.keys[:, :0], memory.values[:, :0])
    if isinstance(memory, StateMemory):
        return StateMemory(memory.states[:, :0])
    return HiddenMemory(memory.states[:, :, :0])


def is_finite(memory: CarriedMemory) -> bool:
    """Whether all numbers in the memory are finite."""
    tensors = [memory.states] if isinstance(memory, HiddenMemory) else memory.tensors
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def pack(groups: Sequence[CarriedMemory]) -> dict[str, Tensor]:
    """The memories of groups of streams, one group after another, as tensors on the CPU.

    Returns:
        keys, values (B, n, K*G*E) and lengths (B,) of a `Memory`, or states (B, n, D) and lengths (B,) of a
        `StateMemory`, or states (B, L, n, D) and visible (B, n) of a `HiddenMemory`; and slots (B,), the number of
        slots in the stream's group. The group's slots are the last of the n; padding comes before them.
    """
    return join([{name: tensor.cpu() for name, tensor in _named(memory).items()} for memory in groups])


def join(packs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenates packed memories of consecutive streams."""
    if not packs[0]:
        return {}
    longest = max(int(packed["slots"].max()) for packed in packs)
    padded = [_padded(packed, longest) for packed in packs]
    return {name: torch.cat([packed[name] for packed in padded]) for name in packs[0]}


def unpack(packed: Mapping[str, Tensor], groups: int, device: torch.device) -> list[CarriedMemory]:
    """The inverse of `pack`, for `groups` groups. Drops slots that are padding in all streams of a group.

    Raises:
        KeyError, RuntimeError: the tensors do not come from `pack`.
    """
    parts = {name: tensor.to(device).chunk(groups) for name, tensor in packed.items()}
    return [_memory({name: part[group] for name, part in parts.items()}) for group in range(groups)]


def _named(memory: CarriedMemory) -> dict[str, Tensor]:
    if isinstance(memory, HiddenMemory):
        batch, _, count, _ = memory.states.shape
        visible = torch.ones(batch, count, dtype=torch.bool) if memory.visible is None else memory.visible
        return {"states": memory.states, "visible": visible, "slots": torch.full((batch,), count)}
    batch, count, _ = memory.tensors[0].shape
    full = torch.full((batch,), count)
    seen = {"lengths": full if memory.lengths is None else memory.lengths, "slots": full}
    if isinstance(memory, StateMemory):
        return {"states": memory.states, **seen}
    return {"keys": memory.keys, "values": memory.values, **seen}


def _padded(packed: Mapping[str, Tensor], longest: int) -> dict[str, Tensor]:
    """Pads the slots at the front to `longest`."""
    after = {"keys": (0, 0), "values": (0, 0), "states": (0, 0), "visible": ()}  # padding of the axes after the slots
    padded = dict(packed)
    for name in padded.keys() & after.keys():
        count = padded[name].shape[-1 - len(after[name]) // 2]
        padded[name] = F.pad(padded[name], (*after[name], longest - count, 0))
    return padded


def _memory(tensors: Mapping[str, Tensor]) -> CarriedMemory:
    count = int(tensors["slots"].max())
    if "visible" in tensors:
        states, visible = tensors["states"], tensors["visible"]
        first = states.shape[2] - count
        seen = visible[:, first:]
        return HiddenMemory(states[:, :, first:], None if bool(seen.all()) else seen)
    stored = [tensors[name] for name in ("keys", "values", "states") if name in tensors]
    first = stored[0].shape[1] - count
    lengths = tensors["lengths"]
    return memory_of([tensor[:, first:] for tensor in stored], None if bool((lengths == count).all()) else lengths)
