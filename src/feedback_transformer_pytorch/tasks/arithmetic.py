"""Arithmetic modulo 5: expressions, labelled with their value at the end.

After Delétang et al. 2023, "Neural Networks and the Chomsky Hierarchy" (arXiv 2207.02098). Without brackets a state of
fixed size is enough: the sum of the terms before, and the term at hand. With brackets it takes a stack.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from .task import IGNORE, PADDING, Integers, Labelled, check_length

MODULUS = 5
_FIRST_DIGIT = 1
PLUS, MINUS, TIMES, EQUALS, OPEN, CLOSE = range(_FIRST_DIGIT + MODULUS, _FIRST_DIGIT + MODULUS + 6)
_WORDS = ("_", "0", "1", "2", "3", "4", "+", "-", "*", "=")
_OPERATIONS = {PLUS: operator.add, MINUS: operator.sub, TIMES: operator.mul}


class ArithmeticTask:
    """A `SequenceTask`: digits with operators between them, such as `3 + 4 * 2 =`; `*` binds tighter.

    The number of digits is uniform from 1 to the largest for which the sequence has room, every digit and operator
    equally likely. Only `=` has a label.
    """

    name = "mod5-arithmetic"
    words = _WORDS
    shortest = 2

    def sample(self, rows: int, length: int, rng: np.random.Generator) -> Labelled:
        """Return tokens and labels, both (B, T)."""
        check_length(self, length)
        most = length // 2
        count = rng.integers(1, most, size=(rows, 1), endpoint=True)
        digits = rng.integers(MODULUS, size=(rows, most))
        operators = rng.integers(PLUS, TIMES, size=(rows, most), endpoint=True)  # each after the digit of its number
        has_digit = np.arange(most) < count
        has_operator = np.arange(most) < count - 1
        tokens = np.full((rows, length), PADDING)
        tokens[:, 0 : 2 * most : 2] = np.where(has_digit, _FIRST_DIGIT + digits, PADDING)
        tokens[:, 1 : 2 * most : 2] = np.where(has_operator, operators, PADDING)
        # "+ 0" in place of all that is left out does not change the value.
        values = _values(np.where(has_digit, digits, 0), np.where(has_operator, operators, PLUS))
        return _with_equals(tokens, 2 * count[:, 0] - 1, values)


class BracketedArithmeticTask:
    """A `SequenceTask`: each operation stands in brackets, such as `( ( 3 + 4 ) * 2 ) =`.

    The number of digits is uniform from 1 to the largest for which the sequence has room, every digit and operator
    equally likely. The operations are done in a random order, each order equally likely. So the last one splits the
    digits anywhere with equal probability, and each side is such an expression. Only `=` has a label.
    """

    name = "mod5-arithmetic-brackets"
    words = (*_WORDS, "(", ")")
    shortest = 2

    def sample(self, rows: int, length: int, rng: np.random.Generator) -> Labelled:
        """Return tokens and labels, both (B, T)."""
        check_length(self, length)
        most = (length + 2) // 4  # n digits, n - 1 operators, twice as many brackets, "="
        count = rng.integers(1, most, size=rows, endpoint=True)
        digits = rng.integers(MODULUS, size=(rows, most)).tolist()
        operators = rng.integers(PLUS, TIMES, size=(rows, most - 1), endpoint=True).tolist()
        times = rng.random((rows, most - 1)).tolist()
        tokens = np.full((rows, length), PADDING)
        values = np.empty(rows, np.int64)
        for row, n in enumerate(count.tolist()):
            expression, values[row] = _bracketed(digits[row][:n], operators[row][: n - 1], times[row][: n - 1])
            tokens[row, : len(expression)] = expression
        return _with_equals(tokens, 4 * count - 3, values)


def _values(digits: Integers, operators: Integers) -> Integers:
    """Return the values of expressions without brackets, (B,), from 0 to 4.

    Args:
        digits: (B, n).
        operators: (B, n), each after the digit of its number; the last is not used.
    """
    total = np.zeros(len(digits), np.int64)  # of all terms before the one at hand
    term = digits[:, 0]
    for i in range(1, digits.shape[1]):
        before, digit = operators[:, i - 1], digits[:, i]
        is_factor = before == TIMES
        total = np.where(is_factor, total, total + term)
        term = np.where(is_factor, term * digit % MODULUS, np.where(before == MINUS, -digit, digit))
    return (total + term) % MODULUS


def _bracketed(digits: Sequence[int], operators: Sequence[int], times: Sequence[float]) -> tuple[list[int], int]:
    """Return the tokens of an expression and its value, from 0 to 4.

    Args:
        digits: n of them.
        operators: the n - 1 between them.
        times: when each operator is applied.
    """
    if not operators:
        return [_FIRST_DIGIT + digits[0]], digits[0]
    last = times.index(max(times))
    left, a = _bracketed(digits[: last + 1], operators[:last], times[:last])
    right, b = _bracketed(digits[last + 1 :], operators[last + 1 :], times[last + 1 :])
    return [OPEN, *left, operators[last], *right, CLOSE], _OPERATIONS[operators[last]](a, b) % MODULUS


def _with_equals(tokens: Integers, ends: Integers, values: Integers) -> Labelled:
    """Put `=` after expressions, at the places `ends` (B,), with their `values` (B,) as labels."""
    labels = np.full_like(tokens, IGNORE)
    rows = np.arange(len(tokens))
    tokens[rows, ends] = EQUALS
    labels[rows, ends] = _FIRST_DIGIT + values
    return Labelled(tokens, labels)
