"""How far rounding can move a result: the bound for comparing two evaluations of one function.

Two correct evaluations differ by rounding errors. They add up in another order, or fuse a multiplication with an
addition, and the same code rounds differently on another processor. How much a rounding error changes a result depends
on the function and the place: a recurrence whose gradients explode magnifies it 100,000 times. So no fixed tolerance
fits. The bound is measured on the definition, by Monte Carlo arithmetic (D. S. Parker, "Monte Carlo Arithmetic",
UCLA CSD-970002, 1997).

The definition is evaluated again with every parameter, and the result of every operation, multiplied by its own random
1 + d with |d| <= NUDGE. The gradient that comes back through an operation is multiplied by the same factor. The largest
change of a result, divided by NUDGE, is its condition: what it would change if everything that it is computed from
changed by a relative 1. Then

    allowed error = ROUNDINGS * eps * max(condition, largest)

Nothing here depends on how a processor rounds. NUDGE is 256 eps: much more than the rounding errors of the definition,
and so little that results change in proportion.

ROUNDINGS is how many nudges of size eps the rounding errors behind one number amount to. A sum of n terms is rounded n
times, each time by at most eps / 2 of what has been added up so far, while the nudges change each term by at most eps.
With random signs, the n rounding errors have the size of sqrt(n / 2) / 2 nudges. That is 8 for the longest sums in the
tests, n = 544. Both evaluations round, which is another factor of sqrt(2). A factor of 5 remains for the largest of
thousands of numbers.

`largest` is the largest magnitude in the tensor; for gradients, in all gradients. It decides where a result is zero but
for rounding, such as the gradient of a bias that the softmax cancels. The terms that cancel inside of softmax, layer
norm and their derivatives cannot be nudged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NUDGE = 2.0**-44
ROUNDINGS = 64
# By chance, a nudge may hardly change a result that is a single number; so many nudges will not.
EVALUATIONS = 8


class Reference:
    """What an evaluation gives that is right by definition, and how far rounding can move that.

    Attributes:
        values: by name, in float64. Names of gradients start with "grad".
    """

    def __init__(self, model: nn.Module, evaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Evaluates.

        Args:
            model: its parameters are what `evaluate` reads, and its gradients are left as the last evaluation set them.
            evaluate: gives the same values each time, by operations that autograd differentiates.
        """
        self._model, self._evaluate = model, evaluate
        self.values = {name: value.detach() for name, value in evaluate().items()}
        for name, value in self.values.items():
            assert value.dtype == torch.float64, f"{name} is {value.dtype}, not float64"
            assert value.isfinite().all(), f"{name} is not finite"
        self._largest = {name: _largest(value) for name, value in self.values.items()}
        self._largest_gradient = max((self._largest[name] for name in self.values if _is_gradient(name)), default=0.0)
        self._movement = dict.fromkeys(self.values, 0.0)
        self._evaluations = 0

    def assert_agrees(self, found: Mapping[str, Tensor], eps: float = torch.finfo(torch.float64).eps) -> None:
        """Raises AssertionError where `found` differs by more than rounding explains.

        Args:
            found: all that the reference has, in the same shapes. Gradients that the reference leaves out must be zero.
            eps: of the type that `found` was computed in.
        """
        assert set(self.values) <= set(found), f"{set(self.values) - set(found)} is missing"
        # The bound can only grow with every evaluation, so few are needed where the error is small.
        while unexplained := {name: ratio for name, ratio in self.ratios(found, eps).items() if not ratio <= 1}:
            if self._evaluations == EVALUATIONS:
                raise AssertionError(f"errors, as multiples of what rounding explains: {unexplained}")
            self._evaluate_nudged()

    def ratios(self, found: Mapping[str, Tensor], eps: float = torch.finfo(torch.float64).eps) -> dict[str, float]:
        """The errors, divided by the bounds that the evaluations up to here give."""
        ratios = {}
        for name, value in found.items():
            expected = self.values.get(name, torch.zeros_like(value))
            assert value.shape == expected.shape, f"{name} is {tuple(value.shape)}, not {tuple(expected.shape)}"
            error, bound = _largest(value.detach().double() - expected), self.bound(name, eps)
            ratios[name] = 0.0 if error == 0 else error / bound if bound else float("inf")
        return ratios

    def bound(self, name: str, eps: float = torch.finfo(torch.float64).eps) -> float:
        """The error that the evaluations up to here allow."""
        largest = self._largest_gradient if _is_gradient(name) else self._largest[name]
        return ROUNDINGS * eps * max(self._movement.get(name, 0.0) / NUDGE, largest)

    def _evaluate_nudged(self) -> None:
        with _nudged(self._model, seed=self._evaluations):
            values = self._evaluate()
        for name, value in values.items():
            moved = _largest(value.detach() - self.values[name])
            assert math.isfinite(moved), f"{name} is no longer finite after a nudge"
            self._movement[name] = max(self._movement[name], moved)
        self._evaluations += 1


def _is_gradient(name: str) -> bool:
    return name.startswith("grad")


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN if there is one."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0


@contextmanager
def _nudged(model: nn.Module, seed: int) -> Iterator[None]:
    generator = torch.Generator().manual_seed(seed)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(_factors(parameter, generator))
        with _NudgedOperations(generator):
            yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.copy_(value)


def _factors(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).uniform_(1 - NUDGE, 1 + NUDGE, generator=generator)


class _NudgedOperations(TorchFunctionMode):
    """Nudges every tensor that an operation returns, unless it is a view, or an argument that was written to."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if type(found) is not Tensor or found.dtype != torch.float64 or found._is_view():
            return found
        if any(found is argument for argument in (*args, *kwargs.values())):
            return found
        return found * _factors(found.detach(), self._generator)
