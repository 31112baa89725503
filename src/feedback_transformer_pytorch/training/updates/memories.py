"""The memories of streams as named tensors, stream by stream, so that other processes can take them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...baselines import HiddenMemory
from ...memory import Memory

Carried = Memory | HiddenMemory


def emptied(memory: Carried) -> Carried:
    """A memory of as many streams without slots."""
    if isinstance(memory, Memory):
        return Memory(memory.keys[:, :0], memory.values[:, :0])
    return HiddenMemory(memory.states[:, :, :0])


def is_finite(memory: Carried) -> bool:
    """Whether all numbers in it are."""
    tensors = [memory.keys, memory.values] if isinstance(memory, Memory) else [memory.states]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def pack(groups: Sequence[Carried]) -> dict[str, Tensor]:
    """The memories of groups of streams, one group after another, as tensors on the CPU.

    Returns:
        keys, values (B, n, G*E) and lengths (B,), or states (B, L, n, D) and visible (B, n), as the memories have
        them; slots (B,), how many of the n a stream's group had. The others stand first and are filled up.
    """
    return join([{name: tensor.cpu() for name, tensor in _named(memory).items()} for memory in groups])


def join(packs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Packed memories of further and further streams in one pack."""
    if not packs[0]:
        return {}
    longest = max(int(packed["slots"].max()) for packed in packs)
    filled = [_filled(packed, longest) for packed in packs]
    return {name: torch.cat([packed[name] for packed in filled]) for name in packs[0]}


def unpack(packed: Mapping[str, Tensor], groups: int, device: torch.device) -> list[Carried]:
    """The memories again, of `groups` groups; what is of no use to any stream of a group is left out.

    Raises:
        KeyError, RuntimeError: the tensors are not what `pack` returned.
    """
    parts = {name: tensor.to(device).chunk(groups) for name, tensor in packed.items()}
    return [_carried({name: part[group] for name, part in parts.items()}) for group in range(groups)]


def _named(memory: Carried) -> dict[str, Tensor]:
    if isinstance(memory, Memory):
        full = torch.full(memory.keys.shape[:1], memory.keys.shape[1])
        lengths = full if memory.lengths is None else memory.lengths
        return {"keys": memory.keys, "values": memory.values, "lengths": lengths, "slots": full}
    batch, _, count, _ = memory.states.shape
    visible = torch.ones(batch, count, dtype=torch.bool) if memory.visible is None else memory.visible
    return {"states": memory.states, "visible": visible, "slots": torch.full((batch,), count)}


def _filled(packed: Mapping[str, Tensor], longest: int) -> dict[str, Tensor]:
    """With hidden slots put first, as many in all as `longest`."""
    after = {"keys": (0, 0), "values": (0, 0), "states": (0, 0), "visible": ()}  # the axes behind the slots
    found = dict(packed)
    for name in found.keys() & after.keys():
        count = found[name].shape[-1 - len(after[name]) // 2]
        found[name] = F.pad(found[name], (*after[name], longest - count, 0))
    return found


def _carried(tensors: Mapping[str, Tensor]) -> Carried:
    count = int(tensors["slots"].max())
    if "states" in tensors:
        states, visible = tensors["states"], tensors["visible"]
        first = states.shape[2] - count
        seen = visible[:, first:]
        return HiddenMemory(states[:, :, first:], None if bool(seen.all()) else seen)
    lengths, first = tensors["lengths"], tensors["keys"].shape[1] - count
    seen_all = bool((lengths == count).all())
    return Memory(tensors["keys"][:, first:], tensors["values"][:, first:], None if seen_all else lengths)
