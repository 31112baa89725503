"""A Linear outside of the walk, by the kernel: the projection to logits, which for many tokens is most of a model."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..applicability import is_called_plainly
from ..layout.rounding import narrowest_type
from .kernel import streams_for, threads_for
from .library import NARROW, library
from .packing import Packing


def narrow_linear(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    """A Linear as a function of x (R, in), by the kernel where its weight is rounded; elsewhere the module itself."""
    compiled = library()
    if compiled is None or type(linear) is not nn.Linear or not is_called_plainly(linear):
        return linear
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return linear
    dtype = narrowest_type([weight.detach()])
    return linear if dtype is None else _KernelLinear(linear, dtype)


class _KernelLinear:
    """A Linear whose weight is in a type of fewer bytes, without gradients."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        compiled = library()
        assert compiled is not None
        self._linear, self._most_rows = linear, compiled.most_rows()
        self._product = getattr(compiled, f"product_{NARROW[dtype]}")
        count = linear.weight.numel()
        self._threads = threads_for(count)
        self._packing = Packing(NARROW[dtype], dtype, self._threads, streams_for(count * dtype.itemsize))
        bias = None if linear.bias is None else linear.bias.detach()
        self._packed = self._packing.linear(linear.weight.detach(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """(R, in) to (R, out)."""
        if len(x) > self._most_rows:
            return self._linear(x)
        x = x.contiguous()
        out = x.new_empty(len(x), self._linear.out_features)
        self._product(ctypes.byref(self._packed), x.data_ptr(), len(x), out.data_ptr(), self._threads)
        return out
