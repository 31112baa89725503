"""The feedback memory of the last M tokens, as it is passed from call to call, and how much of it each row may see."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .autocast import autocast_dtype
from .config import FeedbackConfig
from .errors import InputError


@dataclass(eq=False)
class Memory:
    """Keys and values of the newest n <= M tokens, oldest first: a named pair, as in version 0.0.11.

    It unpacks and is indexed like a pair, but is no tuple: what maps over tuples would lose `lengths`.
    A memory is data: it is passed in, returned, and detached by the caller (truncated backpropagation).

    Attributes:
        keys: (B, n, K*G*E), bank by bank; K is 1 where all layers share their keys and values, otherwise L.
        values: (B, n, K*G*E).
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

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is stored of each slot, each (B, n, ...)."""
        return self.keys, self.values

    def detach(self) -> Memory:
        """The same memory, detached from the graph that made it."""
        return Memory(self.keys.detach(), self.values.detach(), self.lengths)

    def select(self, rows: Tensor) -> Memory:
        """The memory of the rows (B',) named by index, in that order (beam search)."""
        lengths = None if self.lengths is None else self.lengths.index_select(0, rows)
        return Memory(self.keys.index_select(0, rows), self.values.index_select(0, rows), lengths)


@dataclass(eq=False)
class StateMemory:
    """The stored states of the newest n <= M tokens, oldest first, from which a call makes keys and values.

    Attributes:
        states: (B, n, D).
        lengths: as in `Memory`.
    """

    states: Tensor
    lengths: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is stored of each slot, each (B, n, ...)."""
        return (self.states,)

    def detach(self) -> StateMemory:
        """The same memory, detached from the graph that made it."""
        return StateMemory(self.states.detach(), self.lengths)

    def select(self, rows: Tensor) -> StateMemory:
        """The memory of the rows (B',) named by index, in that order (beam search)."""
        lengths = None if self.lengths is None else self.lengths.index_select(0, rows)
        return StateMemory(self.states.index_select(0, rows), lengths)


AnyMemory: TypeAlias = Memory | StateMemory


def _register(cls: Any, fields: tuple[str, ...]) -> None:
    """So that torch finds the tensors in it wherever it maps over what goes into a module and comes out."""

    def flatten(memory: Any) -> tuple[list[Any], None]:
        return [getattr(memory, field) for field in fields], None

    def unflatten(values: Iterable[Any], _: None) -> Any:
        return cls(*values)

    name = f"feedback_transformer_pytorch.{cls.__name__}"
    pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=name)


_register(Memory, ("keys", "values", "lengths"))
_register(StateMemory, ("states", "lengths"))


def as_memory(memory: Any, like: Tensor, config: FeedbackConfig) -> AnyMemory:
    """Checks what a caller gave as memory, trims it to the newest M slots, and gives it the type of a fresh one.

    Args:
        memory: a Memory, or a pair of tensors (B, n, K*G*E); a StateMemory, or its tensor (B, n, D), where the
            configuration carries states; None for an empty one.
        like: (B, T, D), the input it goes with.

    Raises:
        InputError: it is none of these, or its batch, width or device do not fit.
    """
    dtype = autocast_dtype(like) or like.dtype
    carries_states = config.carry != "keys"
    if carries_states:
        dtype = like.dtype  # states are what layers add up, and no product rounds them
    width = config.dim if carries_states else config.memory_dim
    if memory is None:
        empty = like.new_empty(like.shape[0], 0, width, dtype=dtype)
        return StateMemory(empty) if carries_states else Memory(empty, empty)
    names, tensors = _tensors_of(memory, carries_states)
    for name, tensor in zip(names, tensors, strict=True):
        _check(name, tensor, like, width)
    if len({tensor.shape for tensor in tensors}) > 1:
        raise InputError(f"memory.keys is {tuple(tensors[0].shape)} but memory.values {tuple(tensors[1].shape)}")
    lengths = getattr(memory, "lengths", None)
    if lengths is not None:
        _check_lengths(lengths, like)
    newest_slots = slice(max(0, tensors[0].shape[1] - config.mem_len), None)
    if lengths is not None:
        lengths = lengths.long().clamp(0, min(tensors[0].shape[1], config.mem_len))
    return memory_of([tensor[:, newest_slots].to(dtype) for tensor in tensors], lengths)


def _check_lengths(lengths: Any, like: Tensor) -> None:
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        given = f"{lengths.dtype}" if isinstance(lengths, Tensor) else f"of type {type(lengths).__name__}"
        raise InputError(f"memory.lengths is {given}; it must be a tensor of whole numbers ({like.shape[0]},)")
    if lengths.shape != like.shape[:1] or lengths.device != like.device:
        raise InputError(
            f"memory.lengths is {tuple(lengths.shape)} on {lengths.device}; it must be ({like.shape[0]},) on "
            f"{like.device}"
        )


def _tensors_of(memory: Any, carries_states: bool) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    if carries_states:
        states = memory if isinstance(memory, Tensor) else getattr(memory, "states", None)
        if states is None:
            raise InputError(
                f"memory is a {type(memory).__name__}; this model carries states: it must be a StateMemory"
            )
        return ("states",), (states,)
    try:
        keys, values = memory
    except (TypeError, ValueError):
        raise InputError(f"memory is a {type(memory).__name__}; it must be a Memory or a pair (keys, values)") from None
    return ("keys", "values"), (keys, values)


def _check(name: str, tensor: Any, like: Tensor, width: int) -> None:
    batch = like.shape[0]
    if not isinstance(tensor, Tensor) or tensor.ndim != 3 or tensor.shape[0] != batch or tensor.shape[2] != width:
        given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        words = "dim" if name == "states" else "kv_heads*dim_head, for each bank"
        raise InputError(
            f"memory.{name} is {given}; it must be (batch={batch}, n, {width}), where {width} is {words}; "
            "it comes from another batch or another model"
        )
    if tensor.device != like.device:
        raise InputError(f"memory.{name} is on {tensor.device}, the input on {like.device}; move one of them")


def memory_of(tensors: list[Tensor], lengths: Tensor | None = None) -> AnyMemory:
    """The memory of keys and values, or of states."""
    return StateMemory(tensors[0], lengths) if len(tensors) == 1 else Memory(tensors[0], tensors[1], lengths)


def newest(tensors: Iterable[Tensor], mem_len: int) -> AnyMemory:
    """The memory that is left after all tokens: the last M of what is stored, each (B, n, ...)."""
    # Copies: a view would keep all n slots alive for as long as the memory is.
    return memory_of([t if t.shape[1] <= mem_len else t[:, -mem_len:].clone() for t in tensors])


@torch.compiler.disable(reason="how long the memory is depends on what mask and reset say")  # type: ignore[untyped-decorator]
def newest_of_rows(
    tensors: Iterable[Tensor], ends: Tensor, lengths: Tensor, blank: Iterable[Tensor] | None = None, slots: int = 0
) -> AnyMemory:
    """The memory that is left where rows end at different slots.

    Args:
        tensors: what is stored, each (B, n, ...).
        ends: (B,), one past each row's newest slot.
        lengths: (B,), how many slots before its end the row still sees, at most M.
        blank: what stands, and is seen, in the slots before those, of each tensor; None: zeros that are not seen.
        slots: how many slots there are if `blank` is given.
    """
    longest = int(lengths.max()) if blank is None else slots
    age = torch.arange(longest, 0, -1, device=ends.device)
    seen = (age <= lengths[:, None])[..., None]
    found = []
    fillers: Iterable[Tensor | int] = (0, 0) if blank is None else blank
    for tensor, filler in zip(tensors, fillers, strict=False):
        at = (ends[:, None] - age).clamp(min=0)[..., None].expand(-1, -1, tensor.shape[2])
        found.append(torch.where(seen, tensor.gather(1, at), filler))
    all_alike = blank is not None or bool((lengths == longest).all())
    return memory_of(found, None if all_alike else lengths)
