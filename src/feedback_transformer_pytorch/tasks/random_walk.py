"""A random walk through a small maze, labelled with where it is."""

from __future__ import annotations

import numpy as np

from .automaton import run_automaton
from .task import Integers, Labelled, check_length

SIDE = 4
MAZE = """
+-+-+-+-+
|   |   |
+ +-+ + +
|     | |
+-+ + +-+
|   |   |
+ + +-+ +
| |     |
+-+-+-+-+
""".strip().splitlines()  # cells between walls; north is up
MOVES = {"north": (-1, 0), "east": (0, 1), "south": (1, 0), "west": (0, -1)}  # rows down, columns right
CELLS = [f"{column}{row}" for row in range(1, SIDE + 1) for column in "abcd"]


class RandomWalkTask:
    """A `SequenceTask`: tokens are moves, each equally likely, and labels the cell after each move.

    A walk starts in the north-west corner, a1. A move into a wall does nothing, so moves cannot be undone without
    knowing the cell, unlike those of a group.
    """

    name = "random-walk"
    words = (*MOVES, *CELLS)
    shortest = 1

    def sample(self, rows: int, length: int, rng: np.random.Generator) -> Labelled:
        """Return moves and cells, both (B, T)."""
        check_length(self, length)
        moves = rng.integers(len(MOVES), size=(rows, length))
        return Labelled(moves, len(MOVES) + run_automaton(_TRANSITIONS, moves, start=0))


def _next_cell(cell: int, down: int, right: int) -> int:
    row, column = divmod(cell, SIDE)
    is_open = MAZE[2 * row + 1 + down][2 * column + 1 + right] == " "
    return cell + SIDE * down + right if is_open else cell


_TRANSITIONS: Integers = np.array([[_next_cell(cell, *move) for cell in range(SIDE**2)] for move in MOVES.values()])
