from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.data import Streams, consecutive_blocks
from feedback_transformer_pytorch.errors import InputError

sizes = st.integers(1, 9)


@given(batch_size=sizes, block_len=sizes, spare=st.integers(0, 200))
def test_an_epoch_reads_every_stream_from_its_start(batch_size: int, block_len: int, spare: int) -> None:
    tokens = np.arange(batch_size * (block_len + 1) + spare, dtype=np.uint16)
    streams = Streams(tokens, batch_size=batch_size, block_len=block_len)
    blocks = [streams.block(update) for update in range(streams.updates_per_epoch)]
    inputs = torch.cat([block.inputs for block in blocks], dim=1)
    targets = torch.cat([block.targets for block in blocks], dim=1)

    # Token n is the number n, so a stream is its first token and what counts up from it.
    stream_len = len(tokens) // batch_size
    starts = torch.arange(batch_size)[:, None] * stream_len
    torch.testing.assert_close(inputs, starts + torch.arange(inputs.shape[1]))
    torch.testing.assert_close(targets, inputs + 1)
    assert stream_len - block_len <= inputs.shape[1] < stream_len
    assert all(block.inputs.shape == block.targets.shape == (batch_size, block_len) for block in blocks)
    assert [block.restarts for block in blocks] == [True] + [False] * (len(blocks) - 1)


@given(update=st.integers(0, 100))
def test_a_block_depends_on_its_update_number_alone(update: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 100).astype(np.uint8)
    walked = Streams(tokens, batch_size=3, block_len=4)
    for earlier in range(update):
        walked.block(earlier)
    resumed = Streams(tokens, batch_size=3, block_len=4)
    first_epoch = resumed.block(update % resumed.updates_per_epoch)
    for block in (walked.block(update), first_epoch):
        assert torch.equal(block.inputs, resumed.block(update).inputs)
        assert torch.equal(block.targets, resumed.block(update).targets)
        assert block.restarts == (update % resumed.updates_per_epoch == 0)


@given(batch_size=st.integers(2, 9), data=st.data())
def test_processes_share_the_streams_out(batch_size: int, data: st.DataObject) -> None:
    tokens = np.arange(batch_size * 20)
    cut = data.draw(st.integers(1, batch_size - 1))
    parts = [
        Streams(tokens, batch_size=batch_size, block_len=6, rows=rows) for rows in (range(cut), range(cut, batch_size))
    ]
    whole = Streams(tokens, batch_size=batch_size, block_len=6)
    for update in range(whole.updates_per_epoch):
        blocks = [part.block(update) for part in parts]
        assert torch.equal(torch.cat([block.inputs for block in blocks]), whole.block(update).inputs)
        assert torch.equal(torch.cat([block.targets for block in blocks]), whole.block(update).targets)


def test_a_block_is_the_callers_own(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    np.arange(40, dtype=np.int64).tofile(path)
    streams = Streams(np.memmap(path, dtype=np.int64, mode="r"), batch_size=2, block_len=5)
    block = streams.block(1)
    assert block.inputs.is_contiguous()
    assert block.targets.is_contiguous()
    block.inputs.zero_()
    assert block.targets.tolist() == [[6, 7, 8, 9, 10], [26, 27, 28, 29, 30]]
    assert streams.block(1).inputs.tolist() == [[5, 6, 7, 8, 9], [25, 26, 27, 28, 29]]


def test_a_text_one_token_too_short_is_refused_with_what_to_do() -> None:
    assert Streams(np.zeros(36, np.uint8), batch_size=4, block_len=8).updates_per_epoch == 1
    with pytest.raises(InputError, match=r"has 35 tokens, but one update takes 36.*--batch-size or --block-len"):
        Streams(np.zeros(35, np.uint8), batch_size=4, block_len=8)


@pytest.mark.parametrize("rows", [range(0), range(2, 5), range(-1, 2), range(0, 4, 2), range(3, -1, -1)])
def test_rows_that_are_not_consecutive_streams_are_refused(rows: range) -> None:
    with pytest.raises(InputError, match=r"of 4 streams"):
        Streams(np.arange(100), batch_size=4, block_len=8, rows=rows)


@pytest.mark.parametrize(("batch_size", "block_len"), [(0, 8), (4, 0), (-1, 8)])
def test_sizes_below_one_are_refused(batch_size: int, block_len: int) -> None:
    with pytest.raises(InputError, match="1 or more"):
        Streams(np.arange(100), batch_size=batch_size, block_len=block_len)


@pytest.mark.parametrize("tokens", [np.zeros((10, 10), np.uint8), np.zeros(100, np.float32)])
def test_anything_but_a_row_of_integers_is_refused(tokens: np.ndarray) -> None:
    with pytest.raises(InputError, match="integers in one dimension"):
        Streams(tokens, batch_size=4, block_len=8)
    with pytest.raises(InputError, match="integers in one dimension"):
        consecutive_blocks(tokens, 8)


@given(num_tokens=st.integers(2, 60), block_len=st.integers(1, 20))
def test_every_token_but_the_first_is_predicted_once(num_tokens: int, block_len: int) -> None:
    blocks = list(consecutive_blocks(np.arange(num_tokens, dtype=np.uint8), block_len))
    targets = torch.cat([block.targets for block in blocks], dim=1)
    assert targets.tolist() == [list(range(1, num_tokens))]
    assert all(torch.equal(block.inputs, block.targets - 1) for block in blocks)
    assert all(block.targets.shape == (1, block_len) for block in blocks[:-1])
    assert [block.restarts for block in blocks] == [True] + [False] * (len(blocks) - 1)


@pytest.mark.parametrize(("num_tokens", "block_len", "message"), [(1, 8, "takes 2"), (0, 8, "takes 2"), (9, 0, "1 or")])
def test_too_little_to_evaluate_is_refused_at_the_call(num_tokens: int, block_len: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        consecutive_blocks(np.zeros(num_tokens, np.uint8), block_len)
