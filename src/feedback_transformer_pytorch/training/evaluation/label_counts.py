"""What an objective measures of labelled sequences, or of a labelled stream. T positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
from torch import nn

from ...data import padded
from ...tasks import Labelled
from ..objective import Objective
from .measured import Measured, measure_rows
from .reading import split_rows

LOGITS = 2**20  # numbers of logits in one call of the model; the scores of a Transformer take many times as many


def count_sequences(
    model: nn.Module,
    objective: Objective,
    sequences: Sequence[Labelled],
    after_block: Callable[[int], None] | None = None,
) -> Measured:
    """What an objective measures of sequences, each read from an empty memory, at each position too.

    Args:
        model: a model with the interface that `build_model` describes. Its training mode is restored afterwards.
        sequences: tokens and labels (T,) each, of any lengths; at least one label counts.
        after_block: called after each call of the model with the number of positions in it.
    """
    parts = (
        measure_rows(
            model,
            objective,
            *batch,
            block_len=batch.tokens.shape[1],
            whole_rows=True,
            positions=np.indices(batch.tokens.shape)[1],
            after_block=after_block,
        )
        for batch in _batches(model, sequences)
    )
    return reduce(add, parts)


def count_stream(
    model: nn.Module,
    objective: Objective,
    stream: Labelled,
    *,
    block_len: int,
    lead: int = 0,
    rows: int = 1,
    positions: npt.NDArray[np.int64] | None = None,
    after_block: Callable[[int], None] | None = None,
) -> Measured:
    """What an objective measures of a stream after its first `lead` tokens; a model carries its memory through it.

    Args:
        model: a model with the interface that `build_model` describes. Its training mode is restored afterwards.
        stream: tokens and labels (lead + N,).
        block_len, lead, rows: as in `text_bits`, which explains how several rows are read in parallel.
        positions: (lead + N,), the position of each token, such as that in its line; gives sums at each.
        after_block: called after each block with the number of positions in it.
    """
    tokens, labels = (split_rows(values, lead=lead, rows=rows) for values in stream)
    return measure_rows(
        model,
        objective,
        tokens,
        labels,
        block_len=block_len,
        lead=lead,
        positions=None if positions is None else split_rows(positions, lead=lead, rows=rows),
        after_block=after_block,
    )


def _batches(model: nn.Module, sequences: Sequence[Labelled]) -> Iterator[Labelled]:
    """The sequences by length, as many at a time as have logits that fit well in memory."""
    ordered = sorted(sequences, key=lambda sequence: len(sequence.tokens))
    words: int = model.to_logits.out_features  # type: ignore[union-attr, assignment]
    rows = max(1, LOGITS // (len(ordered[-1].tokens) * max(words, 64)))
    for first in range(0, len(ordered), rows):
        yield padded(ordered[first : first + rows])
