"""Bits per byte of a text under a model that carries its memory from the text's start to its end."""

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
    """Average cost of the text after its first `lead` tokens.

    With `rows=1` the text is read as it stands. More rows are faster: the text is cut into that many equal parts, read
    side by side, each after the `lead` tokens before it. What lies further back is lost to a part, so the figure
    is, if anything, too high. Up to `rows - 1` tokens at the end are left out.

    Args:
        model: what `build_model` describes; it is left in the mode, training or not, it was in.
        tokens: (lead + N,) integers.
        tokenizer: says how many bytes the tokens stand for.
        block_len: tokens of a row in one call of the model, a multiple of its `seq_len`.
        lead: tokens that are read but not counted, at least 1: nothing predicts a text's first token.
        rows: parts of the text read side by side, at most N.
        resets: (lead + N,), True at tokens before which the memory is emptied.
        after_block: called after each block with the number of tokens read in it.

    Returns:
        bits per byte.
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
    """(rows, width), each window `step` values after the one before."""
    return np.lib.stride_tricks.sliding_window_view(values, width)[::step][:rows]
