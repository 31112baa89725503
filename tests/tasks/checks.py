"""What tests of several tasks share."""

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np

from feedback_transformer_pytorch.tasks import IGNORE, Labelled, Task


def assert_frequencies(counts: Iterable[int], probabilities: Sequence[float] | None = None) -> None:
    """Pearson's chi-square within five standard deviations; all equally likely if nothing else is said."""
    observed = np.array(list(counts))
    shares = np.full(len(observed), 1 / len(observed)) if probabilities is None else np.array(probabilities)
    assert math.isclose(shares.sum(), 1)
    expected = observed.sum() * shares
    assert expected.min() >= 5, "too few samples for the approximation"
    degrees = len(observed) - 1
    assert ((observed - expected) ** 2 / expected).sum() < degrees + 5 * math.sqrt(2 * degrees)


def digest(sample: Labelled) -> str:
    return hashlib.sha256(sample.tokens.tobytes() + sample.labels.tobytes()).hexdigest()[:16]


def in_words(task: Task, row: Iterable[int]) -> list[str | None]:
    """The words of tokens or labels, None for IGNORE."""
    return [None if number == IGNORE else task.words[number] for number in row]


def text(task: Task, tokens: Iterable[int]) -> str:
    return " ".join(task.words[token] for token in tokens)
