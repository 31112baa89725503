"""The interface of tasks: sequences or streams of tokens whose positions carry labels.

Axis letters: B sequences, T tokens in a sequence, N tokens of a stream, V words.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Integers = npt.NDArray[np.int64]
Part = Literal["train", "validation", "test"]

IGNORE = -100  # label of a position that is not counted: the default `ignore_index` of torch's cross_entropy
PADDING = 0  # token after the end of a sequence that is shorter than others of its batch


class Labelled(NamedTuple):
    """Tokens and their labels, both numbers of words.

    Attributes:
        tokens: (B, T), or (N,) for a stream.
        labels: of the same shape; IGNORE at positions that are not counted.
    """

    tokens: Integers
    labels: Integers


@runtime_checkable
class SequenceTask(Protocol):
    """Independent sequences: a model starts each of them with an empty memory."""

    @property
    def name(self) -> str:
        """What `find_task` finds the task by."""

    @property
    def words(self) -> tuple[str, ...]:
        """The V different words that tokens and labels are numbers of."""

    @property
    def shortest(self) -> int:
        """The smallest `length` that `sample` takes."""

    def sample(self, rows: int, length: int, rng: np.random.Generator) -> Labelled:
        """Return random sequences, (B, T) = (`rows`, `length`), with PADDING and IGNORE after the end of shorter ones.

        Raises:
            InputError: the task has no sequences of this length.
        """


@runtime_checkable
class StreamTask(Protocol):
    """Streams through which a model carries its memory."""

    @property
    def name(self) -> str:
        """What `find_task` finds the task by."""

    @property
    def words(self) -> tuple[str, ...]:
        """The V different words that tokens and labels are numbers of."""

    def stream(self, part: Part) -> Labelled:
        """Return the stream of `part`, (N,): the same in every call and on every machine."""


Task = SequenceTask | StreamTask


def check_length(task: SequenceTask, length: int) -> None:
    """Refuse a `length` below `task.shortest`.

    Raises:
        InputError: `length` is too small.
    """
    if length < task.shortest:
        raise InputError(f"length is {length}; sequences of {task.name} have at least {task.shortest} tokens")
