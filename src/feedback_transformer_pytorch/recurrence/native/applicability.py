"""Where the compiled kernel walks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import Plan
from ..precision import Precision
from .library import TYPES, library, name_of

# For fewer segments preparing the weights takes longer than it saves.
LEAST_SEGMENTS = 8


def applies(plan: Plan, precision: Precision, x: Tensor) -> bool:
    """Whether the kernel computes such a walk."""
    if x.device.type != "cpu" or (precision.products, precision.attention) != (x.dtype, x.dtype):
        return False
    if x.dtype not in (torch.float32, torch.float64) or name_of(precision.weights) not in TYPES:
        return False
    if len(plan.segments) < LEAST_SEGMENTS:
        return False
    compiled = library()
    # With more rows a step's products are large enough for a matrix library, and it is the better one.
    return compiled is not None and max(plan.row_counts) <= compiled.most_rows()
