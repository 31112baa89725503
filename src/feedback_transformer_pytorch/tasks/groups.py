"""The word problem of a finite group: a sequence of random elements, labelled with their running product.

A group is named by a letter and a number: "z60" is the cyclic group of 60 elements, "d14" the dihedral group of 14
elements (the symmetries of a heptagon), "s3" all permutations of 3 points, "a5" the even permutations of 5 points.
Parity is "z2". No parallel Transformer of constant depth solves "a5" or "s5" at all lengths, if TC0 is not NC1
(Barrington 1989; Merrill and Sabharwal 2023, arXiv 2207.00729).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .automaton import run_automaton
from .task import Integers, Labelled, check_length

Permutation = tuple[int, ...]

GROUP_NAME = re.compile("([zdsa])([1-9][0-9]{0,8})")

# The numbers that may follow each letter. Multiplication tables of larger groups are too large to be of use.
_SIZES = {"z": range(2, 513), "d": range(6, 1025, 2), "s": range(2, 6), "a": range(3, 7)}


class GroupTask:
    """A `SequenceTask`: every element is equally likely, and label t = element t * label t-1.

    The elements are numbered in the lexicographic order of their permutations, so element 0 is the identity. Their
    words are these permutations in one-line notation ("120" takes 0 to 1, 1 to 2 and 2 to 0), or plain numbers in a
    cyclic group.

    Attributes:
        table: (V, V); entry [a, b] is the element a * b, "first b, then a" as permutations compose.

    Raises:
        InputError: there is no such group, or it is too large.
    """

    shortest = 1

    def __init__(self, name: str) -> None:
        self.name = name
        generators = _generators(name)
        elements = sorted(_closure(generators))
        self.words = tuple(map(str, range(len(elements)))) if name[0] == "z" else tuple(map(_one_line, elements))
        self.table = _multiplication_table(elements, generators)

    def sample(self, rows: int, length: int, rng: np.random.Generator) -> Labelled:
        """Return elements and their running products, both (B, T)."""
        check_length(self, length)
        elements = rng.integers(len(self.table), size=(rows, length))
        return Labelled(elements, run_automaton(self.table, elements, start=0))


def _generators(name: str) -> list[Permutation]:
    """Return permutations whose products are all elements of the group."""
    match = GROUP_NAME.fullmatch(name)
    if match is None:
        raise InputError(f"group is {name!r}; it must be z, d, s or a and a number, such as s3")
    family, size = match[1], int(match[2])
    allowed = _SIZES[family]
    if size not in allowed:
        even = "even and " if allowed.step == 2 else ""
        raise InputError(f"group is {name!r}; the number after {family} must be {even}{allowed[0]} to {allowed[-1]}")
    points = size // 2 if family == "d" else size
    rotation = tuple((i + 1) % points for i in range(points))
    if family == "z":
        return [rotation]
    if family == "d":
        return [rotation, tuple(-i % points for i in range(points))]
    if family == "s":
        return [rotation, (1, 0, *range(2, points))]
    return [_three_cycle(points, i) for i in range(2, points)]


def _three_cycle(points: int, last: int) -> Permutation:
    """Return the permutation that takes 0 to 1, 1 to `last` and `last` to 0."""
    images = {0: 1, 1: last, last: 0}
    return tuple(images.get(i, i) for i in range(points))


def _compose(a: Permutation, b: Permutation) -> Permutation:
    """Return "first b, then a"."""
    return tuple(a[i] for i in b)


def _closure(generators: Sequence[Permutation]) -> set[Permutation]:
    """Return all products of the generators, the identity included."""
    found = {tuple(range(len(generators[0])))}
    newest = found
    while newest:
        newest = {_compose(generator, element) for generator in generators for element in newest} - found
        found = found | newest
    return found


def _multiplication_table(elements: Sequence[Permutation], generators: Sequence[Permutation]) -> Integers:
    """Return the products of all `elements`, (V, V); the first of them is the identity.

    Only products with generators are composed. For a generator g, row g * b is row g applied to row b:
    (g * b) * c = g * (b * c).
    """
    number = {element: i for i, element in enumerate(elements)}
    rows = [np.array([number[_compose(generator, element)] for element in elements]) for generator in generators]
    table = {0: np.arange(len(elements))}
    newest = [0]
    while newest:
        b = newest.pop()
        for row in rows:
            product = int(row[b])
            if product not in table:
                table[product] = row[table[b]]
                newest.append(product)
    return np.stack([table[a] for a in range(len(elements))])


def _one_line(permutation: Permutation) -> str:
    """Return the images of 0, 1, 2 ..., with commas if there are images of two digits."""
    return ("," if len(permutation) > 10 else "").join(map(str, permutation))
