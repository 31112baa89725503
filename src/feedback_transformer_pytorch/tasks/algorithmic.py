"""The algorithmic task of the Feedback Transformer paper (Fan et al. 2020, arXiv 2002.09402): what do programs print?

A program is 100 statements, then END. Its variables have values from 1 to 10.

    x = 4 ;             a name without a value gets one; each name and value is equally likely
    x ++ ;              or x -- ; the value may not leave 1 to 10
    if x < y : S        or >; y is another variable or, half the time and if there is no other, a number from 1 to 10
    print x ;

S is a statement that is neither `if` nor `print`, and acts only if the comparison holds. All kinds are equally
likely, and so are the variables in them. A statement that cannot apply is drawn again, its kind included: every kind
needs a variable with a value, except `=`, which needs a name without one.

With three variables a program has 432 words and 25.5 prints on average.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from .task import IGNORE, Labelled, Part

PROGRAMS: dict[Part, int] = {"train": 10_000, "validation": 1_000, "test": 1_000}
STATEMENTS = 100
VALUES = range(1, 11)

_Option = TypeVar("_Option")
_Writer = Callable[[], bool]  # writes a statement of its kind and executes it, or returns False if it cannot apply


class AlgorithmicTask:
    """A `StreamTask`: programs one after another; the `;` of `print x ;` is labelled with the value of x.

    Args:
        variables: their names.
    """

    def __init__(self, variables: Sequence[str]) -> None:
        self.name = f"algorithmic-{len(variables)}"
        self.words = (*variables, *map(str, VALUES), "=", "++", "--", "if", "<", ">", ":", "print", ";", "END")
        self._variables = variables

    def stream(self, part: Part) -> Labelled:
        """Return the programs of `part`, (N,)."""
        numbers: dict[str | None, int] = {word: number for number, word in enumerate(self.words)}
        numbers[None] = IGNORE
        rng = random.Random(f"{self.name} {part}")  # for the same text the same `random()` in all versions of Python
        tokens, labels = [], []
        for _ in range(PROGRAMS[part]):
            program = _Program(self._variables, rng)
            tokens += [numbers[word] for word in program.words]
            labels += [numbers[word] for word in program.labels]
        return Labelled(np.array(tokens, np.int64), np.array(labels, np.int64))


class _Program:
    """A random program, executed while it is written.

    Attributes:
        words: of the program.
        labels: for each word what is printed there, None almost everywhere.
    """

    def __init__(self, variables: Sequence[str], rng: random.Random) -> None:
        self.words: list[str] = []
        self.labels: list[str | None] = []
        self._variables = variables
        self._values: dict[str, int] = {}
        self._rng = rng
        self._changes: tuple[_Writer, ...] = (self._assign, self._increment, self._decrement)
        for _ in range(STATEMENTS):
            self._statement((*self._changes, self._if, self._print))
        self._write("END")

    def _statement(self, kinds: Sequence[_Writer]) -> None:
        while not self._choose(kinds)():
            pass

    def _assign(self) -> bool:
        names = [name for name in self._variables if name not in self._values]
        if not names:
            return False
        name, value = self._choose(names), self._choose(VALUES)
        self._values[name] = value
        self._write(name, "=", str(value), ";")
        return True

    def _increment(self) -> bool:
        return self._add("++", 1)

    def _decrement(self) -> bool:
        return self._add("--", -1)

    def _add(self, operator: str, number: int) -> bool:
        if not self._values:
            return False
        name = self._choose(list(self._values))
        value = self._values[name] + number
        if value not in VALUES:
            return False
        self._values[name] = value
        self._write(name, operator, ";")
        return True

    def _if(self) -> bool:
        if not self._values:
            return False
        name, comparison = self._choose(list(self._values)), self._choose("<>")
        value, other, other_value = self._values[name], *self._right_operand(name)
        self._write("if", name, comparison, other, ":")
        before = self._values.copy()
        self._statement(self._changes)
        if not (value < other_value if comparison == "<" else value > other_value):
            self._values = before
        return True

    def _right_operand(self, name: str) -> tuple[str, int]:
        """Return a variable other than `name`, or a number, as a word and its value."""
        others = [other for other in self._values if other != name]
        if others and self._rng.random() < 0.5:
            other = self._choose(others)
            return other, self._values[other]
        number = self._choose(VALUES)
        return str(number), number

    def _print(self) -> bool:
        if not self._values:
            return False
        name = self._choose(list(self._values))
        self._write("print", name, ";", label=str(self._values[name]))
        return True

    def _write(self, *words: str, label: str | None = None) -> None:
        """Write `words`, of which the last has the `label`."""
        self.words += words
        self.labels += [None] * (len(words) - 1)
        self.labels.append(label)

    def _choose(self, options: Sequence[_Option]) -> _Option:
        return options[int(self._rng.random() * len(options))]
