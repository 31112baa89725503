import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from feedback_transformer_pytorch.data import Stage, Streams, TokenBlock, stages
from feedback_transformer_pytorch.errors import InputError

UPDATES = 20


@dataclass(frozen=True)
class Case:
    """A text whose token n is the number n, so that tokens say where they stand."""

    batch_size: int
    stages: Sequence[Stage]
    num_tokens: int
    documents: Sequence[int] = ()

    def streams(self, rows: range | None = None) -> Streams:
        return Streams(
            np.arange(self.num_tokens),
            batch_size=self.batch_size,
            stages=self.stages,
            rows=rows,
            documents=np.array(self.documents, np.int64) if self.documents else None,
        )

    def walk(self) -> list[range]:
        """What each update reads of every stream, found by reading on from update to update."""
        places = [range(0)]
        for update in range(UPDATES):
            block_len = [stage.block_len for stage in self.stages if stage.first <= update][-1]
            start = places[-1].stop
            if start + block_len + 1 > self.num_tokens // self.batch_size:
                start = 0
            places.append(range(start, start + block_len))
        return places[1:]


@st.composite
def cases(draw: st.DrawFn, documents: bool = False) -> Case:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    updates = st.integers(1, UPDATES)
    firsts = draw(st.lists(updates, min_size=len(lengths) - 1, max_size=len(lengths) - 1, unique=True))
    batch_size = draw(st.integers(1, 5))
    num_tokens = batch_size * (max(lengths) + 1) + draw(st.integers(0, 150))
    starts = st.lists(st.integers(0, num_tokens - 1), min_size=1, max_size=20, unique=True)
    return Case(
        batch_size,
        [Stage(first, length) for first, length in zip([0, *sorted(firsts)], lengths, strict=True)],
        num_tokens,
        sorted(draw(starts)) if documents else (),
    )


def one_stage(num_tokens: int, *, batch_size: int = 4, block_len: int = 8) -> Streams:
    return Streams(np.arange(num_tokens), batch_size=batch_size, stages=[Stage(0, block_len)])


@given(case=cases())
def test_every_stream_is_read_on_and_on_and_begins_again_at_its_end(case: Case) -> None:
    streams = case.streams()
    starts = torch.arange(case.batch_size)[:, None] * (case.num_tokens // case.batch_size)
    for update, place in enumerate(case.walk()):
        block = streams.block(update)
        assert torch.equal(block.inputs, starts + torch.tensor(place))
        assert torch.equal(block.targets, block.inputs + 1)
        assert block.restarts == (place.start == 0)
        assert block.reset is None


@given(case=cases(documents=True))
def test_the_memory_is_reset_where_documents_start(case: Case) -> None:
    streams = case.streams()
    for update in range(UPDATES):
        block = streams.block(update)
        expected = torch.isin(block.inputs, torch.tensor(case.documents))
        assert torch.equal(flags(block), expected)
        assert (block.reset is None) == (not expected.any())


@given(case=cases(documents=True), data=st.data())
def test_processes_share_the_streams_out(case: Case, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, case.batch_size - 1)))) if case.batch_size > 1 else []
    bounds = [0, *cuts, case.batch_size]
    parts = [case.streams(range(start, stop)) for start, stop in itertools.pairwise(bounds)]
    whole = case.streams()
    for update in range(UPDATES):
        assert_together([part.block(update) for part in parts], whole.block(update))


@given(case=cases(documents=True), groups=st.integers(1, 4), streams=st.integers(1, 3))
def test_groups_are_the_block_in_order(case: Case, groups: int, streams: int) -> None:
    case = Case(groups * streams, case.stages, case.num_tokens + 10 * groups * streams, case.documents)
    for update in range(UPDATES):
        block = case.streams().block(update)
        found = block.groups(groups)
        assert [len(group.inputs) for group in found] == [streams] * groups
        assert all(group.reset is None or group.reset.any() for group in found)
        assert_together(found, block)


def flags(block: TokenBlock) -> Tensor:
    return torch.zeros_like(block.inputs, dtype=torch.bool) if block.reset is None else block.reset


def assert_together(parts: Sequence[TokenBlock], whole: TokenBlock) -> None:
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert torch.equal(torch.cat([flags(part) for part in parts]), flags(whole))
    assert {part.restarts for part in parts} == {whole.restarts}


def test_a_block_is_the_callers_own(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    np.arange(40, dtype=np.int64).tofile(path)
    tokens = np.memmap(path, dtype=np.int64, mode="r")
    streams = Streams(tokens, batch_size=2, stages=[Stage(0, 5)])
    block = streams.block(1)
    assert block.inputs.is_contiguous()
    assert block.targets.is_contiguous()
    block.inputs.zero_()
    assert block.targets.tolist() == [[6, 7, 8, 9, 10], [26, 27, 28, 29, 30]]
    assert streams.block(1).inputs.tolist() == [[5, 6, 7, 8, 9], [25, 26, 27, 28, 29]]


def test_a_text_one_token_too_short_is_refused_with_what_to_do() -> None:
    assert [one_stage(36).block(update).restarts for update in range(2)] == [True, True]
    with pytest.raises(InputError, match=r"has 35 tokens, but one update takes 36.*--batch-size or --block-len"):
        one_stage(35)


def test_the_longest_stage_says_how_much_text_is_needed() -> None:
    with pytest.raises(InputError, match=r"has 35 tokens, but one update takes 36"):
        Streams(np.arange(35), batch_size=4, stages=[Stage(0, 4), Stage(2, 8)])


@pytest.mark.parametrize("rows", [range(0), range(2, 5), range(-1, 2), range(0, 4, 2), range(3, -1, -1)])
def test_rows_that_are_not_consecutive_streams_are_refused(rows: range) -> None:
    with pytest.raises(InputError, match=r"of 4 streams"):
        Streams(np.arange(100), batch_size=4, stages=[Stage(0, 8)], rows=rows)


@pytest.mark.parametrize(("batch_size", "block_len"), [(0, 8), (4, 0), (-1, 8)])
def test_sizes_below_one_are_refused(batch_size: int, block_len: int) -> None:
    with pytest.raises(InputError, match="1 or more"):
        one_stage(100, batch_size=batch_size, block_len=block_len)


@pytest.mark.parametrize("tokens", [np.zeros((10, 10), np.uint8), np.zeros(100, np.float32)])
def test_anything_but_a_row_of_integers_is_refused(tokens: np.ndarray) -> None:
    with pytest.raises(InputError, match="integers in one dimension"):
        Streams(tokens, batch_size=4, stages=[Stage(0, 8)])


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
