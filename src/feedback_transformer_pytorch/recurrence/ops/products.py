"""Few rows times the same large matrix, many times over."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Packing pays from about a megabyte on; below it the library's call costs more than the better layout gains.
PACK_FROM = 2**18
# It cannot write in place, so with many rows copying the result costs more than that.
ROWS_PER_INPUT = 6
# A weight that lies the wrong way must be transposed before it is packed, which takes as long as this many steps save.
STEPS_PER_TRANSPOSE = 48
# For fewer steps than this, as when a token at a time is generated, no preparation pays.
STEPS_TO_PREPARE = 4


class Product:
    """x W^T + b, with W prepared once for many steps of `rows` rows.

    Such a product is bound by reading W. oneMKL's own layout reads it fastest; without it, W stored (in, out) does.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int, steps: int) -> None:
        """Prepares weight (out, in), which may be a transposed view, and bias (out,) or None."""
        self._weight, self._bias, self._rows = weight, bias, rows
        worth = steps >= (STEPS_TO_PREPARE if weight.is_contiguous() else STEPS_PER_TRANSPOSE)
        self._packed = pack(weight, rows) if worth else None
        self._transposed = weight.t()
        if self._packed is None and steps >= STEPS_TO_PREPARE:
            self._transposed = self._transposed.contiguous()

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(R, in) to (R, out), for any R; `out` may be of another type."""
        if self._packed is not None:
            if x.shape[0] == self._rows:
                found = _mkl_linear(x, self._packed, self._weight, self._bias, self._rows)
            else:
                found = F.linear(x, self._weight, self._bias)
            return found if out is None else out.copy_(found)
        if out is not None and out.dtype != x.dtype:
            return out.copy_(self(x))
        if self._bias is None:
            return torch.mm(x, self._transposed, out=out)
        return torch.addmm(self._bias, x, self._transposed, out=out)


def pack(weight: Tensor, rows: int) -> Tensor | None:
    """The weight in oneMKL's layout for products of `rows` rows; None where that is not to be had or does not pay."""
    if _mkl_linear is None or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    if weight.numel() < PACK_FROM or rows * ROWS_PER_INPUT > weight.shape[1]:
        return None
    return torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)


def _private_operator() -> Any:
    """oneMKL's product with a packed weight; None in builds that lack it."""
    if not torch.backends.mkl.is_available() or not hasattr(torch.ops.mkl, "_mkl_linear"):
        return None
    return torch.ops.mkl._mkl_linear.default


_mkl_linear = _private_operator()
