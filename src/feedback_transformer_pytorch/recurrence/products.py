"""Few rows times the same large matrix, many times over."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Packing pays from about a megabyte on; below it the library's call costs more than the better layout gains.
PACK_FROM = 2**18


class Product:
    """x W^T + b, with W prepared once for steps of `rows` rows.

    Such a product is bound by reading W. oneMKL's own layout reads it fastest; without it, W stored (in, out) does.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        """Prepares weight (out, in) and bias (out,) or None."""
        self._weight, self._bias, self._rows = weight, bias, rows
        self._packed = pack(weight, rows)
        self._transposed = weight.t().contiguous() if self._packed is None else None

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(R, in) to (R, out), for any R; `out` may be of another type."""
        if self._transposed is None and x.shape[0] == self._rows:
            found = torch.ops.mkl._mkl_linear(x, self._packed, self._weight, self._bias, self._rows)
        elif self._transposed is None:
            found = F.linear(x, self._weight, self._bias)
        elif out is not None and out.dtype != x.dtype:
            found = self(x)
        elif self._bias is None:
            return torch.mm(x, self._transposed, out=out)
        else:
            return torch.addmm(self._bias, x, self._transposed, out=out)
        return found if out is None else out.copy_(found)


def pack(weight: Tensor, rows: int) -> Tensor | None:
    """The weight in oneMKL's layout for products of `rows` rows; None where that is not to be had or does not pay."""
    worth = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() >= PACK_FROM
    # A private operator: only builds with oneMKL have it.
    if not worth or not torch.backends.mkl.is_available() or not hasattr(torch.ops.mkl, "_mkl_linear"):
        return None
    return torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)
