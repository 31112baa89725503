"""The kernel's self-test: a small walk in every type against the definition. `native/library.py` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import FeedbackConfig
from .fused import fused
from .layout.rounding import round_linears
from .native.library import library
from .native.product import narrow_linear
from .request import WalkRequest
from .stack import Stack
from .stepwise import stepwise

# Widths that are no whole number of vectors, a carried memory, a window that overflows, and work for several threads.
# Between the two: segments of two tokens with a single token at the end, segments of one; distances as a bias and as a
# product.
_COMMON = FeedbackConfig(dim=40, depth=2, mem_len=19, heads=4, dim_head=8, kv_heads=2, norm_memory=True)
CONFIGS = (replace(_COMMON, seq_len=2, position="t5"), replace(_COMMON, seq_len=1, position="relative"))
BATCH, TIME, CARRIED, THREADS = 3, 17, 5, 2
# By name: the type, whether autocast makes weights and memory bfloat16, and the largest relative error.
CHECKS = {
    "float64": (torch.float64, False, 1e-10),
    "float32": (torch.float32, False, 1e-5),
    "bfloat16": (torch.float32, True, 0.1),
}
# What weights in float32 are rounded to, for walks without gradients that are as near as in float32.
ROUNDED = (torch.bfloat16, torch.int8)


def self_test() -> str | None:
    """What is wrong with the kernel; None if nothing is."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN, so that what is not written is found
    torch.set_num_threads(THREADS)
    if library() is None:
        return "it is turned off"
    for config in CONFIGS:
        stack = Stack(config).double()
        x = torch.randn(BATCH, TIME, config.dim, dtype=torch.float64)
        keys, values = torch.randn(2, BATCH, CARRIED, config.kv_dim, dtype=torch.float64)
        with torch.no_grad():
            for parameter in stack.parameters():  # so that no norm, bias or mix is trivial
                parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = _results(stepwise, stack, x, keys, values)
        for name, (dtype, autocast, tolerance) in CHECKS.items():
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = _results(fused, stack.to(dtype), x.to(dtype), keys.to(dtype), values.to(dtype))
            error = _largest_error(found, expected)
            if not error <= tolerance:
                return f"its {name} results are wrong by {error:.1g}, more than {tolerance:.1g}"
        for dtype in ROUNDED:
            round_linears(stack, dtype)
            expected = _outputs(stepwise, stack.double(), x, keys, values)
            found = _outputs(fused, stack.float(), x.float(), keys.float(), values.float())
            error, tolerance = _largest_error(found, expected), CHECKS["float32"][-1]
            if not error <= tolerance:
                return f"its results of weights in {dtype} are wrong by {error:.1g}, more than {tolerance:.1g}"
    return None


def _results(walk: Callable[..., Any], stack: Stack, x: Tensor, keys: Tensor, values: Tensor) -> list[Tensor]:
    """States, keys and values, and the gradients of a weighted sum of them."""
    inputs = [x.detach().requires_grad_(), keys.detach().requires_grad_(), values.detach().requires_grad_()]
    outputs = walk(stack, WalkRequest(inputs[0], inputs[1], inputs[2]))[:3]
    total = torch.stack([(out.double().flatten() * torch.linspace(-1, 1, out.numel())).sum() for out in outputs]).sum()
    return [tensor.detach() for tensor in (*outputs, *torch.autograd.grad(total, [*inputs, *stack.parameters()]))]


def _outputs(walk: Callable[..., Any], stack: Stack, x: Tensor, keys: Tensor, values: Tensor) -> list[Tensor]:
    """States, keys and values, and the product of the projection into the memory alone."""
    with torch.no_grad():
        states, new_keys, new_values = walk(stack, WalkRequest(x, keys, values))[:3]
        assert stack.to_kv is not None
        project = stack.to_kv if walk is stepwise else narrow_linear(stack.to_kv)
        return [states, new_keys, new_values, project(x.flatten(0, 1))]


def _largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error; NaN if any is."""
    errors = [(a.double() - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(errors).max())


if __name__ == "__main__":
    raise SystemExit(self_test())
