"""Which types a walk computes in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...autocast import autocast_dtype


class Precision(NamedTuple):
    """Types to compute in, and types that numbers are rounded to before.

    Attributes:
        products: of the steps' products with parameters.
        inputs: what the inputs of these products are rounded to.
        bulk: of the products over many steps that give parameters' gradients.
        attention: of attention.
        weights: what weights are rounded to.
        memory: what the keys and values of the memory are rounded to.
        stored: in which the memory's buffer holds them.
    """

    products: torch.dtype
    inputs: torch.dtype
    bulk: torch.dtype
    attention: torch.dtype
    weights: torch.dtype
    memory: torch.dtype
    stored: torch.dtype


def choose_precision(x: Tensor) -> tuple[torch.dtype, Precision]:
    """The type of the keys and values that come out for an input x, and the types torch's operations compute in."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return x.dtype, Precision._make([x.dtype] * len(Precision._fields))
    if x.device.type != "cpu":
        return dtype, Precision._make([dtype] * len(Precision._fields))
    # On a CPU, batched products of few rows are slow in bf16, and products with parameters too where it lacks the
    # instructions; float32 is then faster. Weights and memory are still what autocast makes of them.
    products = dtype if dtype == torch.bfloat16 and has_bf16() else torch.float32
    precision = Precision(
        products=products,
        inputs=products,
        bulk=products,
        attention=torch.float32,
        weights=dtype,
        memory=dtype,
        stored=torch.float32,
    )
    return dtype, precision


def has_bf16() -> bool:
    """Whether this CPU multiplies in bf16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
