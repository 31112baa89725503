"""The parameters of a stack, by name, as ops."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ..layout.plan import Plan
from ..layout.precision import Precision
from .linear import Linear
from .norm import Norm


class Parameters:
    """Makes ops of named parameters, one for each name, and gathers their gradients."""

    def __init__(
        self, tensors: Mapping[str, Tensor], needs_grad: Collection[str], precision: Precision, plan: Plan
    ) -> None:
        """Sets up.

        Args:
            needs_grad: the names of the tensors whose gradients are needed.
        """
        self.tensors, self.precision = tensors, precision
        self._needs_grad, self._plan = needs_grad, plan
        self._ops: dict[str, Linear | Norm] = {}

    def linear(self, name: str, scale: float = 1.0, rows: int | None = None) -> Linear:
        """The Linear of this name, for steps of the walk, or for a single one of `rows` rows."""
        op = self._ops.get(name)
        if op is None:
            weight, bias, needs = self._of(name)
            steps = len(self._plan.segments) if rows is None else 1
            rows = self._plan.row_counts[0] if rows is None else rows
            op = self._ops[name] = Linear(weight, bias, self.precision, needs, rows, steps, scale)
        assert isinstance(op, Linear)
        return op

    def norm(self, name: str, eps: float) -> Norm:
        """The LayerNorm of this name."""
        op = self._ops.get(name)
        if op is None:
            weight, bias, needs = self._of(name)
            assert bias is not None
            op = self._ops[name] = Norm(weight, bias, eps, needs)
        assert isinstance(op, Norm)
        return op

    def _of(self, name: str) -> tuple[Tensor, Tensor | None, tuple[bool, bool]]:
        names = f"{name}.weight", f"{name}.bias"
        needs = names[0] in self._needs_grad, names[1] in self._needs_grad
        return self.tensors[names[0]], self.tensors.get(names[1]), needs

    def gradients(self) -> dict[str, Tensor]:
        """What has been gathered, by the name of the parameter."""
        return {
            f"{name}.{kind}": gradient
            for name, op in self._ops.items()
            for kind, gradient in zip(("weight", "bias"), op.gradients, strict=True)
            if gradient is not None
        }
