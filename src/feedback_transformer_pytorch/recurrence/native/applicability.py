"""Where the compiled kernel walks, and in which types."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import Plan
from ..precision import Precision
from .library import TYPES, library, name_of

# For fewer segments preparing the weights takes longer than it saves.
LEAST_SEGMENTS = 8


def kernel_precision(plan: Plan, precision: Precision, x: Tensor) -> Precision | None:
    """The types in which the kernel computes such a walk; None where it does not apply.

    Args:
        precision: the types in which torch's operations would compute it.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or precision.attention != x.dtype:
        return None
    if name_of(precision.weights) not in TYPES or len(plan.segments) < LEAST_SEGMENTS:
        return None
    compiled = library()
    # With more rows a step's products are large enough for a matrix library, and it is the better one.
    if compiled is None or max(plan.row_counts) > compiled.most_rows():
        return None
    multiplies_bf16 = precision.weights == torch.bfloat16 and compiled.multiplies_bf16()
    return precision._replace(
        products=x.dtype, inputs=torch.bfloat16 if multiplies_bf16 else x.dtype, stored=precision.memory
    )
