"""Weights rounded to types of fewer bytes.

A weight (out, in) is in bfloat16 where all its numbers are. It is in int8 where each row is whole numbers from -127 to
127 times a scale of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# The narrowest first.
NARROW_TYPES = (torch.int8, torch.bfloat16)
LARGEST = 127
# Rows of a weight that are looked at together: so few that a weight which is not rounded is soon known.
ROWS_AT_ONCE = 256


def row_scales(weight: Tensor) -> Tensor:
    """The scales (out, 1) of a weight in int8; 1 for a row of zeros, or of numbers below 1e-36.

    The scales have 8 significant bits, so their products with whole numbers up to 127 are exact in float32. Hence a
    rounded weight has the same scales, and rounding it a second time changes nothing.
    """
    scales = (weight.abs().amax(1, keepdim=True) / LARGEST).bfloat16().to(weight.dtype)
    return scales.masked_fill(scales < torch.finfo(torch.bfloat16).tiny, 1)


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight (out, in) with its numbers rounded to a type, in its own type."""
    if dtype != torch.int8:
        return weight.to(dtype).to(weight.dtype)
    scales = row_scales(weight)
    return (weight / scales).round_() * scales


def round_linears(module: nn.Module, dtype: torch.dtype) -> None:
    """Rounds the weights of all Linears of a module in place."""
    with torch.no_grad():
        for linear in module.modules():
            if isinstance(linear, nn.Linear):
                linear.weight.copy_(rounded(linear.weight, dtype))


def narrowest_type(weights: Iterable[Tensor]) -> torch.dtype | None:
    """The type of fewest bytes that all weights (out, in) are in; None where they are not rounded."""
    weights = list(weights)
    return next((dtype for dtype in NARROW_TYPES if all(_is_rounded(weight, dtype) for weight in weights)), None)


def _is_rounded(weight: Tensor, dtype: torch.dtype) -> bool:
    return all(torch.equal(rounded(part, dtype), part) for part in weight.split(ROWS_AT_ONCE))
