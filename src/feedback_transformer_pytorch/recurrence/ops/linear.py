"""A product with a parameter as an op."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..layout.precision import Precision
from .products import Product


class Linear:
    """x W^T + b, the weight times `scale`, for `steps` steps of `rows` rows."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        precision: Precision,
        needs_grad: tuple[bool, bool],
        rows: int,
        steps: int,
        scale: float = 1.0,
    ) -> None:
        self.weight, self.bias, self.scale = weight, bias, scale
        self._precision, self._rows, self._steps = precision, rows, steps
        self.gradients: list[Tensor | None] = [
            torch.zeros_like(parameter) if needs and parameter is not None else None
            for parameter, needs in zip((weight, bias), needs_grad, strict=True)
        ]

    @cached_property
    def _scaled(self) -> Tensor:
        scaled = self.weight * self.scale if self.scale != 1.0 else self.weight
        return scaled.to(self._precision.weights).to(self._precision.products)

    def step(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(R, in) to (R, out)."""
        precision = self._precision
        if precision.inputs != precision.products:
            x = x.to(precision.inputs).to(precision.products)
        return self._product(x, out)

    @cached_property
    def _product(self) -> Product:
        bias = None if self.bias is None else self.bias.to(self._precision.products)
        return Product(self._scaled, bias, self._rows, self._steps)

    @cached_property
    def step_backward(self) -> Product:
        """The gradient of x (R, in) from that of the output (R, out)."""
        return Product(self._scaled.t(), None, self._rows, self._steps)

    def accumulate(self, grad: Tensor, x: Tensor) -> None:
        """Adds the parameter gradients of many steps, from the gradients of their outputs and their inputs."""
        weight, bias = self.gradients
        if weight is not None:
            bulk = self._precision.bulk
            if weight.dtype == x.dtype == bulk:
                weight.addmm_(grad.t(), x, alpha=self.scale)
            else:
                weight.add_(grad.to(bulk).t() @ x.to(bulk), alpha=self.scale)
        if bias is not None:
            bias.add_(grad.sum(0, dtype=bias.dtype))
