import re

import numpy as np
import pytest
from checks import assert_frequencies, in_words, text
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.tasks.copying import LETTERS, CopyTask


@pytest.mark.parametrize("reverse", [False, True])
@given(length=st.integers(3, 60), seed=st.integers(0, 2**32))
def test_labels_are_the_letters(reverse: bool, length: int, seed: int) -> None:
    task = CopyTask(reverse=reverse)
    tokens, labels = task.sample(3, length, np.random.default_rng(seed))
    for row, row_labels in zip(tokens, labels, strict=True):
        match = re.fullmatch(r"((?:[a-h] )+)\|((?: _)+)", text(task, row))
        assert match
        letters, blanks = match[1].split(), match[2].split()
        padding = len(blanks) - len(letters)
        assert padding >= 0
        before = [None] * (len(letters) + 1)
        answers = letters[::-1] if reverse else letters
        assert in_words(task, row_labels) == [*before, *answers, *[None] * padding]


def test_frequencies() -> None:
    task = CopyTask(reverse=False)
    tokens, _ = task.sample(3000, 21, np.random.default_rng(0))
    assert_frequencies(np.bincount((tokens == task.words.index("|")).argmax(axis=1), minlength=11)[1:])
    assert_frequencies((tokens == task.words.index(letter)).sum() for letter in LETTERS)
