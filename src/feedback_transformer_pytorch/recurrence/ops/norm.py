"""Layer normalisation as an op."""

from __future__ import annotations

import torch
from torch import Tensor

_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class Norm:
    """Layer normalisation."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float, needs_grad: tuple[bool, bool]) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps
        self._shape = list(weight.shape)
        self._needs_grad = [False, *needs_grad]
        self.gradients: list[Tensor | None] = [torch.zeros_like(weight) if needs else None for needs in needs_grad]

    @classmethod
    def plain(cls, like: Tensor, width: int, eps: float) -> Norm:
        """One without parameters."""
        return cls(like.new_ones(width), like.new_zeros(width), eps, (False, False))

    def step(self, x: Tensor) -> Tensor:
        """(R, D) to (R, D)."""
        return torch.native_layer_norm(x, self._shape, self.weight, self.bias, self.eps)[0]

    def recompute(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output (R, D) of many steps, with the mean and the inverse deviation (R, 1)."""
        return torch.native_layer_norm(x, self._shape, self.weight, self.bias, self.eps)

    def step_backward(self, grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """The gradient of x from the gradient of the output, both (R, D)."""
        return _norm_backward(grad, x, self._shape, mean, rstd, self.weight, self.bias, [True, False, False])[0]

    def accumulate(self, grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> None:
        """Adds the parameter gradients of many steps."""
        if not any(self._needs_grad):
            return
        mask = self._needs_grad
        found = _norm_backward(grad.to(x.dtype), x, self._shape, mean, rstd, self.weight, self.bias, mask)
        for total, part in zip(self.gradients, found[1:], strict=True):
            if total is not None:
                total.add_(part)
