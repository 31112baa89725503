"""Which types a walk computes in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Precision(NamedTuple):
    """Types to compute in, and types that numbers are rounded to before.

    Attributes:
        products: of the products with parameters.
        attention: of attention.
        weights: what weights are rounded to.
        memory: what the keys and values of the memory are rounded to.
    """

    products: torch.dtype
    attention: torch.dtype
    weights: torch.dtype
    memory: torch.dtype


def choose_precision(x: Tensor) -> tuple[torch.dtype, Precision]:
    """The type of the keys and values that come out for an input x, and the types to compute in."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x.dtype, Precision(x.dtype, x.dtype, x.dtype, x.dtype)
    dtype = torch.get_autocast_dtype(device)
    if device != "cpu":
        return dtype, Precision(dtype, dtype, dtype, dtype)
    # On a CPU, batched products of few rows are slow in bf16, and products with parameters too where it lacks the
    # instructions; float32 is then faster. Weights are still what autocast makes of them: half the bytes to read.
    return dtype, Precision(dtype if _has_bf16() else torch.float32, torch.float32, dtype, torch.float32)


def _has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
