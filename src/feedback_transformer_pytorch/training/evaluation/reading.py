"""A model reads rows of tokens in evaluation mode, block by block, with the memory carried."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode; its training mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def read_rows(
    model: nn.Module,
    tokens: npt.NDArray[Any],
    *,
    block_len: int,
    resets: npt.NDArray[np.bool_] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yields the places of each block, and the logits (R, block, V) there.

    The model is in evaluation mode until the last block; its training mode is restored afterwards.

    Args:
        model: a model with the interface that `build_model` describes.
        tokens: (R, N) integers.
        block_len: tokens of a row in one call of the model, a multiple of its `seq_len`.
        resets: (R, N), True at tokens before which the memory is emptied.
    """
    device = next(model.parameters()).device
    memory = None
    with evaluating(model):
        for start in range(0, tokens.shape[1], block_len):
            places = slice(start, min(start + block_len, tokens.shape[1]))
            keywords = {}
            if resets is not None:
                keywords["reset"] = torch.from_numpy(resets[:, places].copy()).to(device)
            inputs = torch.from_numpy(tokens[:, places].astype(np.int64)).to(device)
            logits, memory = model(inputs, memory, return_memory=True, **keywords)
            yield places, logits


def split_rows(values: npt.NDArray[Any], *, lead: int, rows: int) -> npt.NDArray[Any]:
    """(rows, lead + n): the values that follow the first `lead` in `rows` equal parts, each after the `lead` before it.

    Up to `rows - 1` values at the end are left out.
    """
    part = (len(values) - lead) // rows
    return np.lib.stride_tricks.sliding_window_view(values, lead + part)[::part][:rows]
