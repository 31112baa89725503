"""Finite groups as multiplication tables, and their word problem: sequences of elements and their running products.

A group is named by a letter and a number: "z60" is the cyclic group of 60 elements, "d14" the dihedral group of 14
elements (the symmetries of a heptagon), "s3" all permutations of 3 points, "a5" the even permutations of 5 points.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

Permutation = tuple[int, ...]

MAX_POINTS = {"s": 5, "a": 6, "z": 512, "d": 512}  # the tables of larger groups are too large to be of use


def multiplication_table(name: str) -> Tensor:
    """(n, n) whole numbers: entry [a, b] is the element a * b, "first b, then a" as permutations compose.

    The elements are numbered in the lexicographic order of their permutations, so element 0 is the identity.

    Raises:
        ValueError: no such group, or it is too large.
    """
    elements = sorted(closure(generators(name)))
    number = {element: i for i, element in enumerate(elements)}
    return torch.tensor([[number[compose(a, b)] for b in elements] for a in elements])


def generators(name: str) -> list[Permutation]:
    """Permutations whose products are all elements of the group.

    Raises:
        ValueError: no such group, or it is too large.
    """
    match = re.fullmatch(r"([zdsa])(\d+)", name)
    if match is None:
        raise ValueError(f"group is {name!r}; it must be a letter of z, d, s, a and a number, such as s3")
    family, size = match[1], int(match[2])
    points = size // 2 if family == "d" else size
    smallest = {"z": 2, "d": 3, "s": 2, "a": 3}[family]
    if not smallest <= points <= MAX_POINTS[family] or (family == "d" and size % 2):
        sizes = f"even and {2 * smallest}" if family == "d" else f"{smallest}"
        largest = MAX_POINTS[family] * (2 if family == "d" else 1)
        raise ValueError(f"group is {name!r}; the number after {family!r} must be {sizes} to {largest}")
    rotation = tuple((i + 1) % points for i in range(points))
    if family == "z":
        return [rotation]
    if family == "d":
        return [rotation, tuple(-i % points for i in range(points))]
    if family == "s":
        return [rotation, (1, 0, *range(2, points))]
    return [cycle(points, (0, 1, i)) for i in range(2, points)]


def cycle(points: int, moved: tuple[int, ...]) -> Permutation:
    """Each of `moved` goes to the next of them, and all other points stay."""
    to = dict(zip(moved, (*moved[1:], moved[0]), strict=True))
    return tuple(to.get(i, i) for i in range(points))


def compose(a: Permutation, b: Permutation) -> Permutation:
    """First b, then a."""
    return tuple(a[i] for i in b)


def closure(generators: list[Permutation]) -> set[Permutation]:
    """All products of the generators, the identity included."""
    found = {tuple(range(len(generators[0])))}
    newest = found
    while newest:
        newest = {compose(generator, element) for generator in generators for element in newest} - found
        found = found | newest
    return found


def word_problem(table: Tensor, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random elements, each as likely as any other, and at each place their product so far: two tensors (B, T).

    The product is that of the permutations applied one after another: label t = element t * label t-1.
    """
    words = torch.randint(len(table), (rows, length), generator=generator)
    labels = [words[:, 0]]
    for t in range(1, length):
        labels.append(table[words[:, t], labels[-1]])
    return words, torch.stack(labels, dim=1)
