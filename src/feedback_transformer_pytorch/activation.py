"""Activations of the feed-forward: each as a function, and as a function with derivatives.

A new one is a class with the methods of `Activation` and an entry in `ACTIVATIONS`; its name is then a value of
`feedforward` in the configuration. The definition differentiates `__call__`, the faster ways use `step` and
`derivatives`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(Protocol):
    """A function of `parts` numbers, for each of F hidden units, that is equal to its copies.

    Attributes:
        parts: how many numbers each hidden unit takes; the hidden layer has parts * F outputs, part by part.
    """

    parts: ClassVar[int]

    def __call__(self, hidden: Tensor) -> Tensor:
        """(..., parts * F) to (..., F), differentiable."""

    def step(self, hidden: Tensor) -> Tensor:
        """The same without gradients, for (R, parts * F): a fresh tensor (R, F)."""

    def derivatives(self, hidden: Tensor, out: Tensor, slopes: Tensor) -> None:
        """Writes the output (R, F) and its derivatives (R, parts, F) by each part of `hidden` (R, parts * F)."""


@dataclass(frozen=True)
class Geglu:
    """gelu(gate) * value, where the input is value, then gate (Shazeer 2020, arXiv 2002.05202)."""

    parts: ClassVar[int] = 2

    def __call__(self, hidden: Tensor) -> Tensor:
        value, gate = hidden.chunk(2, dim=-1)
        return F.gelu(gate) * value

    def step(self, hidden: Tensor) -> Tensor:
        value, gate = hidden.chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)

    def derivatives(self, hidden: Tensor, out: Tensor, slopes: Tensor) -> None:
        value, gate = hidden.chunk(2, dim=-1)
        by_value, by_gate = slopes.unbind(1)
        torch.ops.aten.gelu.out(gate, out=by_value)
        torch.ops.aten.gelu_backward.grad_input(value, gate, grad_input=by_gate)
        torch.mul(by_value, value, out=out)


@dataclass(frozen=True)
class Relu:
    """max(hidden, 0), as in the paper."""

    parts: ClassVar[int] = 1

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden.relu()

    def step(self, hidden: Tensor) -> Tensor:
        return hidden.relu()

    def derivatives(self, hidden: Tensor, out: Tensor, slopes: Tensor) -> None:
        torch.clamp(hidden, min=0, out=out)
        slopes.copy_((hidden > 0)[:, None])


ACTIVATIONS: dict[str, Activation] = {"geglu": Geglu(), "relu": Relu()}
