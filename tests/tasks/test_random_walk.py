import numpy as np
from checks import assert_frequencies, in_words

from feedback_transformer_pytorch.tasks.random_walk import CELLS, MOVES, RandomWalkTask

# Letters count from west to east, numbers from north to south.
EASTWARD = ["a1 b1", "c1 d1", "a2 b2", "b2 c2", "a3 b3", "c3 d3", "b4 c4", "c4 d4"]
SOUTHWARD = ["a1 a2", "c1 c2", "d1 d2", "b2 b3", "c2 c3", "a3 a4", "b3 b4", "d3 d4"]


def doors() -> dict[tuple[str, str], str]:
    """Where a move from a cell leads, for the moves that lead anywhere."""
    to = {}
    for pairs, there, back in ((EASTWARD, "east", "west"), (SOUTHWARD, "south", "north")):
        for first, second in map(str.split, pairs):
            to[first, there] = second
            to[second, back] = first
    return to


def test_labels_are_the_cells() -> None:
    task, to = RandomWalkTask(), doors()
    tokens, labels = task.sample(50, 100, np.random.default_rng(0))
    for row, row_labels in zip(tokens, labels, strict=True):
        cell = "a1"
        for move, label in zip(in_words(task, row), in_words(task, row_labels), strict=True):
            cell = to.get((cell, move), cell)
            assert label == cell


def test_moves_are_equally_likely_and_all_cells_are_visited_alike() -> None:
    tokens, labels = RandomWalkTask().sample(2000, 200, np.random.default_rng(0))
    assert_frequencies(np.bincount(tokens[:, 0]))
    assert_frequencies(np.bincount(labels[:, -1] - len(MOVES), minlength=len(CELLS)))
