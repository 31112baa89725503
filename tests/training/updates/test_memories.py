from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feedback_transformer_pytorch import FeedbackTransformer, Memory
from feedback_transformer_pytorch.baselines import HiddenMemory
from feedback_transformer_pytorch.memory import StateMemory
from feedback_transformer_pytorch.training.updates.memories import (
    CarriedMemory,
    is_finite,
    join,
    pack,
    unpack,
    without_slots,
)

CPU = torch.device("cpu")


def random_memory(
    kind: type[CarriedMemory], batch: int, slots: int, *, uneven: bool, dtype: torch.dtype
) -> CarriedMemory:
    """With `uneven`, streams see different numbers of the slots, but never all of them see all."""
    seen = torch.randint(0, slots + 1, (batch,)).clamp(max=slots - (torch.arange(batch) == 0).int())
    hidden = torch.arange(slots) < slots - seen[:, None] if uneven and slots else None
    if kind is HiddenMemory:
        return HiddenMemory(torch.randn(batch, 2, slots, 3, dtype=dtype), None if hidden is None else ~hidden)
    tensors = torch.randn(1 if kind is StateMemory else 2, batch, slots, 3, dtype=dtype)
    if hidden is None:
        return kind(*tensors)
    return kind(*tensors.masked_fill(hidden[..., None], 0), seen)


@st.composite
def memories(draw: st.DrawFn) -> list[CarriedMemory]:
    """Those of one to four groups of equally many streams."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    kind = draw(st.sampled_from([Memory, StateMemory, HiddenMemory]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    batch, slots = draw(st.integers(1, 3)), draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    return [random_memory(kind, batch, count, uneven=draw(st.booleans()), dtype=dtype) for count in slots]


def tensors(memory: CarriedMemory) -> list[Tensor | None]:
    return list(vars(memory).values())


def assert_same(memory: CarriedMemory, other: CarriedMemory) -> None:
    assert type(memory) is type(other)
    for mine, others in zip(tensors(memory), tensors(other), strict=True):
        assert (mine is None) == (others is None)
        assert mine is None or (mine.dtype == others.dtype and torch.equal(mine, others))


def seen_by_streams(groups: Sequence[CarriedMemory]) -> list[list[Tensor]]:
    """What each stream sees of its memory, whatever its group."""
    found = []
    for memory in groups:
        for row in range(len(tensors(memory)[0])):
            one = memory.select(torch.tensor([row]))
            if isinstance(one, HiddenMemory):
                found.append([one.states[0] if one.visible is None else one.states[0][:, one.visible[0]]])
            else:
                first = 0 if one.lengths is None else one.tensors[0].shape[1] - int(one.lengths)
                found.append([tensor[0, first:] for tensor in one.tensors])
    return found


@given(groups=memories())
def test_memories_come_back_bit_for_bit(groups: list[CarriedMemory]) -> None:
    for memory, unpacked in zip(groups, unpack(pack(groups), len(groups), CPU), strict=True):
        assert_same(memory, unpacked)


@given(groups=memories(), data=st.data())
def test_memories_of_several_processes_join(groups: list[CarriedMemory], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(groups)))
    packs = [pack(part) for part in (groups[:cut], groups[cut:]) if part]
    for memory, unpacked in zip(groups, unpack(join(packs), len(groups), CPU), strict=True):
        assert_same(memory, unpacked)


@given(groups=memories(), data=st.data())
def test_other_groups_see_the_same(groups: list[CarriedMemory], data: st.DataObject) -> None:
    """As when other processes take the streams over."""
    streams = seen_by_streams(groups)
    count = data.draw(st.sampled_from([n for n in range(1, len(streams) + 1) if len(streams) % n == 0]))
    regrouped = seen_by_streams(unpack(pack(groups), count, CPU))
    torch.testing.assert_close(regrouped, streams, rtol=0, atol=0)


def test_no_memories_join_to_none() -> None:
    assert join([{}, {}]) == {}


@given(groups=memories())
def test_an_emptied_memory_has_the_same_streams_and_no_slots(groups: list[CarriedMemory]) -> None:
    nothing = [[tensor[..., :0, :] for tensor in seen] for seen in seen_by_streams(groups)]
    empty = seen_by_streams([without_slots(memory) for memory in groups])
    torch.testing.assert_close(empty, nothing)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("kind", "name"), [(Memory, "keys"), (Memory, "values"), (StateMemory, "states"), (HiddenMemory, "states")]
)
def test_one_number_that_is_not_finite_is_found(kind: type[CarriedMemory], name: str, number: float) -> None:
    memory = random_memory(kind, 2, 3, uneven=False, dtype=torch.float32)
    assert is_finite(memory)
    getattr(memory, name)[-1, -1, -1] = number
    assert not is_finite(memory)


@pytest.mark.parametrize("carry", ["keys", "state"])
@pytest.mark.parametrize("memory_start", ["empty", "zeros"])
def test_an_emptied_stream_among_others_is_as_a_fresh_one(carry: str, memory_start: str) -> None:
    """One group was emptied, then another number of processes put its streams into one group with others."""
    torch.manual_seed(0)
    model = FeedbackTransformer(
        num_tokens=7, dim=8, depth=2, mem_len=5, seq_len=1, heads=2, dim_head=4, kv="per_layer", memory_norm="layer",
        carry=carry, memory_start=memory_start,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # the norms' biases too, so that a zero state has keys
            parameter.add_(torch.randn_like(parameter))
    x = torch.randint(7, (4, 6))
    groups = [model(part, return_memory=True)[1].detach() for part in x.chunk(2)]
    emptied = [without_slots(groups[0]), groups[1]]
    expected = torch.cat([model(x[:2]), model(x[2:], groups[1])])
    (together,) = unpack(pack(emptied), 1, CPU)
    torch.testing.assert_close(model(x, together), expected)
    apart = unpack(pack(emptied), 2, CPU)
    torch.testing.assert_close(torch.cat([model(x[:2], apart[0]), model(x[2:], apart[1])]), expected, rtol=0, atol=0)
