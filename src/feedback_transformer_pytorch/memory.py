"""The feedback memory: keys and values of the last M tokens, and how many of them each row may see."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .config import FeedbackConfig
from .errors import InputError


@dataclass(eq=False)
class Memory:
    """Keys and values of the newest n <= M tokens, oldest first: a named pair, as in version 0.0.11.

    It unpacks and is indexed like a pair, but is no tuple: what maps over tuples would lose `lengths`.
    A memory is data: it is passed in, returned, and detached by the caller (truncated backpropagation).

    Attributes:
        keys: (B, n, G*E).
        values: (B, n, G*E).
        lengths: (B,) whole numbers: row b sees its newest `lengths[b]` slots, the others are zero. None, the usual
            case, means that every row sees all n. It is lost when a memory is unpacked, so hand the memory itself
            on where `mask` or `reset` made rows differ.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor | None = None

    _fields: ClassVar[tuple[str, ...]] = ("keys", "values")

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.keys, self.values))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return (self.keys, self.values)[index]

    def _replace(self, **fields: Any) -> Memory:
        return dataclasses.replace(self, **fields)

    def _asdict(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values}

    def detach(self) -> Memory:
        """The same memory, cut off from the graph that made it."""
        return Memory(self.keys.detach(), self.values.detach(), self.lengths)

    def select(self, rows: Tensor) -> Memory:
        """The memory of the rows (B',) named by index, in that order (beam search)."""
        lengths = None if self.lengths is None else self.lengths.index_select(0, rows)
        return Memory(self.keys.index_select(0, rows), self.values.index_select(0, rows), lengths)


def _flatten(memory: Memory) -> tuple[list[Any], None]:
    return [memory.keys, memory.values, memory.lengths], None


def _unflatten(fields: Iterable[Any], _: None) -> Memory:
    return Memory(*fields)


# So that torch finds the tensors in it wherever it maps over what goes into a module and comes out.
pytree.register_pytree_node(Memory, _flatten, _unflatten, serialized_type_name="feedback_transformer_pytorch.Memory")


def as_memory(memory: Any, like: Tensor, config: FeedbackConfig) -> Memory:
    """Checks what a caller gave as memory, trims it to the newest M slots, and gives it the type of a fresh one.

    Args:
        memory: a Memory, a pair of tensors (B, n, G*E), or None for an empty one.
        like: (B, T, D), the input it goes with.

    Raises:
        InputError: it is no such pair, or its batch, width or device do not fit.
    """
    batch, width, device = like.shape[0], config.kv_dim, like.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
    if memory is None:
        empty = like.new_empty(batch, 0, width, dtype=dtype)
        return Memory(empty, empty)
    try:
        keys, values = memory
    except (TypeError, ValueError):
        raise InputError(f"memory is a {type(memory).__name__}; it must be a Memory or a pair (keys, values)") from None
    lengths = getattr(memory, "lengths", None)
    for name, tensor in (("keys", keys), ("values", values)):
        if not isinstance(tensor, Tensor) or tensor.ndim != 3 or tensor.shape[0] != batch or tensor.shape[2] != width:
            given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(
                f"memory.{name} is {given}; it must be (batch={batch}, n, kv_heads*dim_head="
                f"{config.kv_heads}*{config.dim_head}={width}); it comes from another batch or another model"
            )
        if tensor.device != like.device:
            raise InputError(f"memory.{name} is on {tensor.device}, the input on {like.device}; move one of them")
    if keys.shape != values.shape:
        raise InputError(f"memory.keys is {tuple(keys.shape)} but memory.values {tuple(values.shape)}")
    if lengths is not None and lengths.shape != (batch,):
        raise InputError(f"memory.lengths is {tuple(lengths.shape)}; it must be ({batch},)")
    kept = slice(max(0, keys.shape[1] - config.mem_len), None)
    if lengths is not None:
        lengths = lengths.clamp(max=config.mem_len)
    return Memory(keys[:, kept].to(dtype), values[:, kept].to(dtype), lengths)


def newest(keys: Tensor, values: Tensor, mem_len: int) -> Memory:
    """The memory that is left after all tokens: the last M of keys and values (B, n, G*E)."""
    dropped = max(0, keys.shape[1] - mem_len)
    if not dropped:
        return Memory(keys, values)
    # Copies: a view would keep all n slots alive for as long as the memory is.
    return Memory(keys[:, dropped:].clone(), values[:, dropped:].clone())


def newest_of_rows(keys: Tensor, values: Tensor, ends: Tensor, lengths: Tensor) -> Memory:
    """The memory that is left where rows end at different slots.

    Args:
        keys, values: (B, n, G*E).
        ends: (B,), one past each row's newest slot.
        lengths: (B,), how many slots before its end the row still sees, at most M.
    """
    longest = int(lengths.max())
    age = torch.arange(longest, 0, -1, device=keys.device)
    slots = (ends[:, None] - age).clamp(min=0)[..., None].expand(-1, -1, keys.shape[2])
    seen = (age <= lengths[:, None])[..., None]
    kept = [torch.where(seen, tensor.gather(1, slots), 0) for tensor in (keys, values)]
    return Memory(kept[0], kept[1], None if bool((lengths == longest).all()) else lengths)
