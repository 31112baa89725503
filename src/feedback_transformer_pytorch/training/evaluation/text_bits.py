"""The bits of a text under a model that carries its memory from the start of the text to its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from ...data import Tokenizer, Tokens
from .reading import read_rows, split_rows


class TextBits(NamedTuple):
    """The bits that a model takes for a text of so many bytes."""

    bits: float
    num_bytes: int

    @property
    def per_byte(self) -> float:
        """Bits per byte."""
        return self.bits / self.num_bytes


@torch.no_grad()
def text_bits(
    model: nn.Module,
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    block_len: int,
    lead: int = 1,
    rows: int = 1,
    resets: npt.NDArray[np.bool_] | None = None,
    after_block: Callable[[int], None] | None = None,
) -> TextBits:
    """The bits of the N tokens that follow the first `lead` tokens.

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
    flags = None if resets is None else split_rows(resets, lead=lead, rows=rows)[:, :-1]
    nats = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    for places, logits in read_rows(model, windows[:, :-1], block_len=block_len, resets=flags):
        targets = torch.from_numpy(windows[:, places.start + 1 : places.stop + 1].astype(np.int64)).to(logits.device)
        losses = F.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none")
        nats += losses[:, max(0, lead - 1 - places.start) :].sum()
        if after_block is not None:
            after_block(losses.numel())
    counted = tokens[lead : lead + windows.size - rows * lead]
    return TextBits(nats.item() / math.log(2), tokenizer.num_bytes(counted))
