from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from feedback_transformer_pytorch import FeedbackTransformer
from feedback_transformer_pytorch.tasks import IGNORE, Labelled
from feedback_transformer_pytorch.training.evaluation import label_counts as module
from feedback_transformer_pytorch.training.evaluation.label_counts import count_sequences, count_stream
from feedback_transformer_pytorch.training.evaluation.measured import Measured
from feedback_transformer_pytorch.training.objective import Labels

WORDS = 5


@pytest.fixture
def model() -> FeedbackTransformer:
    torch.manual_seed(0)
    return FeedbackTransformer(num_tokens=WORDS, dim=16, depth=2, heads=2, dim_head=8, seq_len=1, mem_len=4).double()


def random_sequences(lengths: Sequence[int]) -> list[Labelled]:
    rng = np.random.default_rng(0)
    found = []
    for length in lengths:
        labels = np.where(rng.random(length) < 0.6, rng.integers(0, WORDS, length), IGNORE)
        found.append(Labelled(rng.integers(0, WORDS, length), labels))
    return found


def one_by_one(model: FeedbackTransformer, sequences: Sequence[Labelled]) -> Measured:
    longest = max(len(sequence.tokens) for sequence in sequences)
    labels, right = np.zeros(longest, np.int64), np.zeros(longest, np.int64)
    nats, with_label, last_right = 0.0, 0, 0
    for tokens, given in sequences:
        with torch.no_grad():
            scores = model(torch.from_numpy(tokens)[None])[0]
        hit = None
        for place, label in enumerate(given):
            if label != IGNORE:
                labels[place] += 1
                hit = int(scores[place].argmax()) == label
                right[place] += hit
                nats += F.cross_entropy(scores[place], torch.tensor(label)).item()
        if hit is not None:
            with_label += 1
            last_right += hit
    sums = {"labels": labels.sum(), "right": right.sum(), "rows": with_label, "last_right": last_right}
    return Measured(Labels(), nats, labels.sum(), sums, {"labels": labels, "right": right})


@pytest.mark.parametrize("logits", [1, 2**20])
def test_sequences_of_any_length_are_counted_as_if_alone(
    model: FeedbackTransformer, monkeypatch: pytest.MonkeyPatch, logits: int
) -> None:
    monkeypatch.setattr(module, "LOGITS", logits)
    sequences = random_sequences([3, 9, 1, 9, 5, 2])
    read: list[int] = []
    found, expected = count_sequences(model, Labels(), sequences, read.append), one_by_one(model, sequences)
    assert (found.targets, found.sums) == (expected.targets, expected.sums)
    assert found.by_position == expected.by_position
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert sum(read) >= sum(len(sequence.tokens) for sequence in sequences)
    assert model.training


def test_the_memory_is_carried_through_a_stream(model: FeedbackTransformer) -> None:
    (stream,) = random_sequences([50])
    expected = one_by_one(model, [stream])
    for block_len in (7, 100):
        found = count_stream(model, Labels(), stream, block_len=block_len)
        assert found.values == {"accuracy": expected.values["accuracy"]}
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.by_position is None


@pytest.mark.parametrize("length", [50, 14])
def test_rows_of_a_stream_are_read_after_their_lead(model: FeedbackTransformer, length: int) -> None:
    """And the position of a label is what is given for it, such as its place in one of the lines of `length` tokens."""
    (stream,) = random_sequences([50])
    positions = np.arange(50) % length
    windows = [slice(start, start + 8 + 14) for start in (0, 14, 28)]
    alone = [
        count_stream(
            model,
            Labels(),
            Labelled(*(values[window] for values in stream)),
            positions=positions[window],
            block_len=6,
            lead=8,
        )
        for window in windows
    ]
    together = count_stream(model, Labels(), stream, positions=positions, block_len=6, lead=8, rows=3)
    summed = alone[0] + alone[1] + alone[2]
    assert (together.targets, together.sums, together.by_position) == (summed.targets, summed.sums, summed.by_position)
    assert together.loss == pytest.approx(summed.loss, rel=1e-5)
    assert together.targets == (stream.labels[8:] != IGNORE).sum()
    counted = np.bincount(positions[8:][stream.labels[8:] != IGNORE], minlength=length)
    assert [share is None for share in together.by_position] == (counted == 0).tolist()
