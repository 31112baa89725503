"""Bits per byte of a text under a model that carries its memory from the start of the text to its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from ...data import Tokenizer, Tokens


@torch.no_grad()
def bits_per_byte(
    model: nn.Module,
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    block_len: int,
    lead: int = 1,
    rows: int = 1,
    resets: npt.NDArray[np.bool_] | None = None,
    after_block: Callable[[int], None] | None = None,
) -> float:
    """Bits per byte of the N tokens that follow the first `lead` tokens.

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
    part = (len(tokens) - lead) // rows
    windows = _windows(tokens, lead + part, part, rows)
    flags = None if resets is None else _windows(resets, lead + part, part, rows)
    device = next(model.parameters()).device
    nats = torch.zeros((), dtype=torch.float64, device=device)
    memory = None
    was_training = model.training
    model.eval()
    try:
        for start in range(0, lead + part - 1, block_len):
            block = torch.from_numpy(windows[:, start : start + block_len + 1].astype(np.int64)).to(device)
            keywords = {}
            if flags is not None:
                keywords["reset"] = torch.from_numpy(flags[:, start : start + block.shape[1] - 1].copy()).to(device)
            logits, memory = model(block[:, :-1], memory, return_memory=True, **keywords)
            losses = F.cross_entropy(logits.transpose(1, 2).float(), block[:, 1:], reduction="none")
            nats += losses[:, max(0, lead - 1 - start) :].sum()
            if after_block is not None:
                after_block(losses.numel())
    finally:
        model.train(was_training)
    counted = tokens[lead : lead + rows * part]
    return nats.item() / math.log(2) / tokenizer.num_bytes(counted)


def _windows(values: npt.NDArray[Any], width: int, step: int, rows: int) -> npt.NDArray[Any]:
    """(rows, width) windows; each starts `step` values after the one before."""
    return np.lib.stride_tricks.sliding_window_view(values, width)[::step][:rows]
