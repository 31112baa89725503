import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from feedback_transformer_pytorch.data.curriculum import Stage, stages
from feedback_transformer_pytorch.errors import InputError


def doublings(first: int, last: int) -> int:
    """How often `first` is doubled to reach `last` or pass it: the number of stages before the last."""
    return next(count for count in itertools.count() if first * 2**count >= last)


def test_without_a_first_length_there_is_one_stage() -> None:
    assert stages(64) == [Stage(0, 64)]


@given(first=st.integers(1, 20), block_len=st.integers(2, 300), spare=st.integers(0, 100))
def test_lengths_double_in_equal_parts_of_the_updates(first: int, block_len: int, spare: int) -> None:
    assume(first < block_len)
    short = doublings(first, block_len)
    found = stages(block_len, first, short + spare)
    assert [stage.block_len for stage in found] == [*(first * 2**count for count in range(short)), block_len]
    starts = [stage.first for stage in found]
    parts = [end - start for start, end in itertools.pairwise(starts)]
    assert (starts[0], starts[-1]) == (0, short + spare)
    assert max(parts) - min(parts) <= 1
    assert min(parts) >= 1


@given(seq_len=st.integers(1, 8), first=st.integers(1, 5), block_len=st.integers(2, 40))
def test_every_stage_has_whole_segments(seq_len: int, first: int, block_len: int) -> None:
    assume(first < block_len)
    found = stages(seq_len * block_len, seq_len * first, 100)
    assert all(stage.block_len % seq_len == 0 for stage in found)


@pytest.mark.parametrize("first", [0, 64, 65])
def test_a_first_length_must_be_below_the_last(first: int) -> None:
    with pytest.raises(InputError, match=f"--first-block-len is {first}; it must be below --block-len 64"):
        stages(64, first, 100)


@given(first=st.integers(1, 20), block_len=st.integers(2, 300))
def test_every_stage_needs_an_update(first: int, block_len: int) -> None:
    assume(first < block_len)
    short = doublings(first, block_len)
    with pytest.raises(InputError, match=f"--curriculum-updates is {short - 1}; .* it must be at least {short}$"):
        stages(block_len, first, short - 1)
