import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.data import GeneratedSequences, GivenSequences, padded
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.tasks import IGNORE, Labelled, SequenceTask, find_task


def task(name: str = "s3") -> SequenceTask:
    found = find_task(name)
    assert isinstance(found, SequenceTask)
    return found


def numbered(count: int) -> list[Labelled]:
    """Sequences of one to three tokens, each of its own number."""
    return [Labelled(np.full(1 + n % 3, n), np.full(1 + n % 3, n)) for n in range(count)]


def test_every_update_has_new_sequences_of_its_length() -> None:
    blocks = GeneratedSequences(task(), batch_size=4, length=lambda update: 8 + update, seed=3)
    first, second = blocks.block(0), blocks.block(1)
    assert (tuple(first.inputs.shape), tuple(second.inputs.shape)) == ((4, 8), (4, 9))
    assert first.restarts
    assert not first.continues
    assert not torch.equal(first.inputs, second.inputs[:, :8])


def test_sequences_depend_on_seed_and_update_only() -> None:
    one, same, other = (
        GeneratedSequences(task(), batch_size=4, length=lambda _: 8, seed=seed).block(5) for seed in (1, 1, 2)
    )
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.targets, same.targets)
    assert not torch.equal(one.inputs, other.inputs)


def test_each_process_reads_its_rows_of_the_same_sequences() -> None:
    def blocks(rows: range | None) -> GeneratedSequences:
        return GeneratedSequences(task("copy"), batch_size=4, length=lambda _: 9, seed=0, rows=rows)

    whole = blocks(None).block(2)
    parts = [blocks(rows).block(2) for rows in (range(2), range(2, 4))]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


@given(count=st.integers(1, 9), batch_size=st.integers(1, 7))
def test_an_epoch_has_each_sequence_once(count: int, batch_size: int) -> None:
    blocks = GivenSequences(numbered(count), batch_size=batch_size, block_len=3, seed=1)
    updates = range(2 * count)
    order = [row for update in updates for row in blocks.block(update).inputs[:, 0].tolist()]
    for epoch in range(len(order) // count):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_shorter_sequences_are_padded_at_their_end() -> None:
    tokens, labels = padded([Labelled(np.array([1, 2]), np.array([3, IGNORE])), Labelled(np.array([4]), np.array([5]))])
    assert tokens.tolist() == [[1, 2], [4, 0]]
    assert labels.tolist() == [[3, IGNORE], [5, IGNORE]]


def test_a_sequence_that_is_too_long_is_an_error() -> None:
    with pytest.raises(InputError, match="the longest sequence has 3 tokens, but --block-len is 2; give --block-len 3"):
        GivenSequences(numbered(5), batch_size=2, block_len=2, seed=0)
