from collections import Counter

import numpy as np
from checks import assert_frequencies, in_words
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.tasks.counting import CountTask


@given(length=st.integers(1, 120), seed=st.integers(0, 2**32))
def test_labels_are_counts(length: int, seed: int) -> None:
    task = CountTask()
    [row], [labels] = task.sample(1, length, np.random.default_rng(seed))
    counts = Counter()
    for letter, label in zip(in_words(task, row), in_words(task, labels), strict=True):
        counts[letter] += 1
        assert label == (str(counts[letter]) if counts[letter] < 16 else "16+")


def test_frequencies() -> None:
    tokens, _ = CountTask().sample(100, 100, np.random.default_rng(0))
    assert_frequencies(np.bincount(tokens.ravel()))
