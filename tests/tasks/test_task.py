"""What holds for all tasks."""

import numpy as np
import pytest
from checks import digest
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.tasks import IGNORE, SequenceTask, StreamTask, find_task
from feedback_transformer_pytorch.tasks.task import PADDING

PADDED = ["mod5-arithmetic", "mod5-arithmetic-brackets", "copy", "reverse"]
NAMES = ["z2", "z60", "d14", "s3", "a5", "s5", *PADDED, "random-walk", "count", "mqar", "mqar-32"]
TASKS: dict[str, SequenceTask] = {name: find_task(name) for name in NAMES}

# Of 3 sequences of 40 tokens, seed 0. The data of a task never changes: results with other data cannot be compared.
DIGESTS = {
    "z2": "96ce0449f6f688ee",
    "z60": "477c51a19ba84784",
    "d14": "9717aa6ac45528e8",
    "s3": "4650a125a47e4e98",
    "a5": "6dff5c130eb1795f",
    "s5": "6266fc96ef2d629f",
    "mod5-arithmetic": "16dd34dd8f0b69e6",
    "mod5-arithmetic-brackets": "02e94bee8bf12712",
    "copy": "c87eeebeae29175f",
    "reverse": "4c9e0677113af8b6",
    "random-walk": "86ba8047ab6f6388",
    "count": "595a87a4fe168da7",
    "mqar": "29688f356aeecf69",
    "mqar-32": "1dec5855feb3e9cc",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_interface(name: str) -> None:
    task = TASKS[name]
    assert isinstance(task, SequenceTask)
    assert not isinstance(task, StreamTask)
    assert task.name == name
    assert len(set(task.words)) == len(task.words)
    assert not any(" " in word for word in task.words)


@pytest.mark.parametrize("name", NAMES)
@given(rows=st.integers(0, 4), extra=st.integers(0, 80), seed=st.integers(0, 2**32))
def test_samples(name: str, rows: int, extra: int, seed: int) -> None:
    task = TASKS[name]
    length = task.shortest + extra
    tokens, labels = sample = task.sample(rows, length, np.random.default_rng(seed))
    for numbers in sample:
        assert numbers.shape == (rows, length)
        assert numbers.dtype == np.int64
    assert ((tokens >= 0) & (tokens < len(task.words))).all()
    is_counted = labels != IGNORE
    assert ((labels >= 0) & (labels < len(task.words)) | ~is_counted).all()
    assert is_counted.any(axis=1).all()
    assert digest(task.sample(rows, length, np.random.default_rng(seed))) == digest(sample)


@pytest.mark.parametrize("name", PADDED)
@given(extra=st.integers(0, 80), seed=st.integers(0, 2**32))
def test_padding_stands_at_the_end(name: str, extra: int, seed: int) -> None:
    task = TASKS[name]
    tokens, labels = task.sample(4, task.shortest + extra, np.random.default_rng(seed))
    for row, row_labels in zip(tokens, labels, strict=True):
        end = np.flatnonzero(row_labels != IGNORE)[-1] + 1
        assert (row[end:] == PADDING).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_data_never_changes(name: str) -> None:
    assert digest(TASKS[name].sample(3, 40, np.random.default_rng(0))) == DIGESTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_other_seeds_give_other_data(name: str) -> None:
    samples = [TASKS[name].sample(2, 40, np.random.default_rng(seed)) for seed in range(20)]
    assert len({digest(sample) for sample in samples}) == 20


@pytest.mark.parametrize("name", NAMES)
def test_short_sequences_are_refused(name: str) -> None:
    task = TASKS[name]
    for length in (task.shortest - 1, -1):
        with pytest.raises(InputError, match=f"length is {length}; sequences of {name} have at least {task.shortest}"):
            task.sample(1, length, np.random.default_rng(0))
