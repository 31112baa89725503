"""What an objective measures of a text, with its bits, under a model that carries its memory through the text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import nn

from ...data import Tokenizer, Tokens
from ..objective import Objective
from .measured import Measured, measure_rows
from .reading import split_rows


def text_bits(
    model: nn.Module,
    objective: Objective,
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    block_len: int,
    lead: int = 1,
    rows: int = 1,
    resets: npt.NDArray[np.bool_] | None = None,
    after_block: Callable[[int], None] | None = None,
) -> Measured:
    """What an objective measures of the N tokens after the first `lead`, with their `bits` and `bytes` in the sums.

    With `rows=1` the model reads the text from start to end. More rows are faster: the text is split into `rows` equal
    parts, which are read in parallel. Each part is read after the `lead` tokens before it, but without anything further
    back, so the result may be slightly too high. Up to `rows - 1` tokens at the end are not counted.

    Args:
        model: a model with the interface that `build_model` describes. Its training mode is restored afterwards.
        tokens: (lead + N,) integers.
        tokenizer: counts the bytes of the tokens.
        block_len: tokens of a row in one call of the model, a multiple of its `seq_len`.
        lead: tokens that are read but not counted, at least 1, because nothing predicts the first token of a text.
        rows: number of parts read in parallel, at most N.
        resets: (lead + N,), True at tokens before which the memory is emptied.
        after_block: called after each block with the number of tokens in it.
    """
    windows = split_rows(tokens, lead=lead, rows=rows)
    found = measure_rows(
        model,
        objective,
        windows[:, :-1],
        windows[:, 1:],
        block_len=block_len,
        lead=lead - 1,
        resets=None if resets is None else split_rows(resets, lead=lead, rows=rows)[:, :-1],
        after_block=after_block,
    )
    num_bytes = tokenizer.num_bytes(tokens[lead : lead + windows.size - rows * lead])
    return replace(found, sums={**found.sums, "bits": found.nats / math.log(2), "bytes": num_bytes})
