"""Where the compiled kernel walks, and in which types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...config import FeedbackConfig
from ..layout.plan import Plan
from ..layout.precision import Precision
from .library import TYPES, library, name_of

# For fewer segments preparing the weights takes longer than it saves.
LEAST_SEGMENTS = 8
# The hyperparameters that the kernel knows a few values of.
_KNOWN: dict[str, tuple[Any, ...]] = {
    "position": ("t5", "relative", "legacy"),
    "kv": ("shared",),
    "norm": ("pre",),
    "memory_norm": ("none", "plain"),
    "feedforward": ("geglu",),
    "carry": ("keys",),
    "adaptive_span": (False,),
    "context_dim": (None,),
}


def unknown_variant(config: FeedbackConfig) -> str | None:
    """The first hyperparameter whose value the kernel does not know, as half a sentence; None if it knows all."""
    for name, known in _KNOWN.items():
        if getattr(config, name) not in known:
            return f"the kernel does not know {name}={getattr(config, name)!r}"
    return None


def unsupported_reason(plan: Plan, precision: Precision, x: Tensor) -> str | None:
    """Why the kernel does not compute a walk of a variant that it knows, as half a sentence; None if it does.

    Args:
        precision: the types in which torch's operations would compute it.
    """
    if x.device.type != "cpu":
        return f"the kernel is for CPUs, the input is on {x.device.type}"
    if x.dtype not in (torch.float32, torch.float64) or precision.attention != x.dtype:
        return f"the kernel does not compute in {x.dtype}"
    if name_of(precision.weights) not in TYPES:
        return f"the kernel has no weights of {precision.weights}"
    if len(plan.segments) < LEAST_SEGMENTS:
        return f"fewer than {LEAST_SEGMENTS} segments do not pay for the kernel"
    compiled = library()
    if compiled is None:
        return "there is no compiled kernel"
    # With more rows a step's products are large enough for a matrix library, and it is the better one.
    if max(plan.row_counts) > compiled.most_rows():
        return f"a step has more than {compiled.most_rows()} rows"
    return None


def kernel_precision(precision: Precision, x: Tensor) -> Precision:
    """The types in which the kernel computes, from those of torch's operations."""
    compiled = library()
    multiplies_bf16 = precision.weights == torch.bfloat16 and compiled is not None and compiled.multiplies_bf16()
    return precision._replace(
        products=x.dtype, inputs=torch.bfloat16 if multiplies_bf16 else x.dtype, stored=precision.memory
    )
