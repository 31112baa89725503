from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from feedback_transformer_pytorch import FeedbackTransformer
from feedback_transformer_pytorch.tasks import IGNORE, Labelled
from feedback_transformer_pytorch.training.evaluation import label_counts as module
from feedback_transformer_pytorch.training.evaluation.label_counts import LabelCounts, count_sequences, count_stream

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


def one_by_one(model: FeedbackTransformer, sequences: Sequence[Labelled]) -> LabelCounts:
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
    return LabelCounts(labels, right, nats, with_label, last_right)


@pytest.mark.parametrize("logits", [1, 2**20])
def test_sequences_of_any_length_are_counted_as_if_alone(
    model: FeedbackTransformer, monkeypatch: pytest.MonkeyPatch, logits: int
) -> None:
    monkeypatch.setattr(module, "LOGITS", logits)
    sequences = random_sequences([3, 9, 1, 9, 5, 2])
    read: list[int] = []
    found, expected = count_sequences(model, sequences, read.append), one_by_one(model, sequences)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.right.tolist() == expected.right.tolist()
    assert found.nats == pytest.approx(expected.nats, rel=1e-5)
    assert (found.sequences, found.last_right) == (expected.sequences, expected.last_right)
    assert sum(read) >= sum(len(sequence.tokens) for sequence in sequences)
    assert model.training


def test_figures_of_sequences() -> None:
    counts = LabelCounts(np.array([4, 0, 4]), np.array([4, 0, 1]), nats=4.0, sequences=4, last_right=1)
    assert (counts.accuracy, counts.accuracy_last, counts.loss) == (5 / 8, 0.25, 0.5)
    assert counts.by_position == [1.0, None, 0.25]


def test_the_memory_is_carried_through_a_stream(model: FeedbackTransformer) -> None:
    (stream,) = random_sequences([50])
    expected = one_by_one(model, [stream])
    for block_len in (7, 100):
        found = count_stream(model, stream, block_len=block_len)
        assert (found.labels.sum(), found.right.sum()) == (expected.labels.sum(), expected.right.sum())
        assert found.nats == pytest.approx(expected.nats, rel=1e-5)
    assert (found.accuracy_last, found.by_position) == (None, None)


def test_rows_of_a_stream_are_read_after_their_lead(model: FeedbackTransformer) -> None:
    (stream,) = random_sequences([50])
    parts = [Labelled(*(values[start : start + 8 + 14] for values in stream)) for start in (0, 14, 28)]
    alone = [count_stream(model, part, block_len=6, lead=8) for part in parts]
    together = count_stream(model, stream, block_len=6, lead=8, rows=3)
    summed = alone[0] + alone[1] + alone[2]
    assert (together.labels.tolist(), together.right.tolist()) == (summed.labels.tolist(), summed.right.tolist())
    assert together.nats == pytest.approx(summed.nats, rel=1e-5)
    assert summed.labels.sum() == (stream.labels[8:] != IGNORE).sum()
