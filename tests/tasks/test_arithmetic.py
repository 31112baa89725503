import re
from collections import Counter

import numpy as np
import pytest
from checks import assert_frequencies, in_words, text
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.tasks.arithmetic import ArithmeticTask, BracketedArithmeticTask

WITHOUT, WITH = ArithmeticTask(), BracketedArithmeticTask()


def expression_of(row: str) -> str:
    """The expression before `=` and the padding."""
    match = re.fullmatch(r"([-0-4+*() ]+) =( _)*", row)
    assert match, row
    return match[1]


def reduce(expression: str) -> str:
    """Replace the first operation in brackets by its value until none is left."""
    while match := re.search(r"\( [0-4] [-+*] [0-4] \)", expression):
        expression = expression[: match.start()] + str(eval(match[0]) % 5) + expression[match.end() :]
    return expression


@pytest.mark.parametrize("task", [WITHOUT, WITH], ids=lambda task: task.name)
@given(length=st.integers(2, 120), seed=st.integers(0, 2**32))
def test_the_label_is_the_value_at_the_equals_sign(task: ArithmeticTask, length: int, seed: int) -> None:
    tokens, labels = task.sample(3, length, np.random.default_rng(seed))
    for row, row_labels in zip(tokens, labels, strict=True):
        value = eval(expression_of(text(task, row))) % 5
        assert in_words(task, row_labels) == [str(value) if token == "=" else None for token in in_words(task, row)]


@given(length=st.integers(2, 120), seed=st.integers(0, 2**32))
def test_digits_and_operators_take_turns(length: int, seed: int) -> None:
    tokens, _ = WITHOUT.sample(3, length, np.random.default_rng(seed))
    for row in tokens:
        assert re.fullmatch(r"[0-4]( [-+*] [0-4])*", expression_of(text(WITHOUT, row)))


@given(length=st.integers(2, 120), seed=st.integers(0, 2**32))
def test_each_operation_has_its_brackets(length: int, seed: int) -> None:
    tokens, _ = WITH.sample(3, length, np.random.default_rng(seed))
    for row in tokens:
        assert re.fullmatch("[0-4]", reduce(expression_of(text(WITH, row))))


@pytest.mark.parametrize(("task", "length", "most"), [(WITHOUT, 41, 20), (WITH, 41, 10)], ids=["without", "with"])
def test_frequencies(task: ArithmeticTask, length: int, most: int) -> None:
    tokens, _ = task.sample(5000, length, np.random.default_rng(0))
    rows = [expression_of(text(task, row)) for row in tokens]
    numbers_of_digits = Counter(len(re.findall("[0-4]", row)) for row in rows)
    assert_frequencies(numbers_of_digits[n] for n in range(1, most + 1))
    words = Counter(" ".join(rows).split())
    assert_frequencies(words[digit] for digit in "01234")
    assert_frequencies(words[operator] for operator in "+-*")


def test_the_last_operation_splits_the_digits_anywhere() -> None:
    most = 5
    tokens, _ = WITH.sample(10_000, 4 * most - 2, np.random.default_rng(0))
    found = Counter()
    for row in tokens:
        expression = expression_of(text(WITH, row))
        if len(re.findall("[0-4]", expression)) == most:
            depth, left = 0, 0
            for character in expression:
                depth += {"(": 1, ")": -1}.get(character, 0)
                left += character in "01234"
                if depth == 1 and character in "+-*":
                    found[left] += 1
    assert_frequencies(found[left] for left in range(1, most))
