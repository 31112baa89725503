"""Which way a walk is computed: the compiled kernel, operations of torch, or the definition, in this order.

Each backend says what it does not support, and why. What none supports is computed by the definition. Another backend
is a class with the methods of `Backend` and an entry in `BACKENDS`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .applicability import difference_from_configuration
from .engine.protocols import BackwardSteps, ForwardSteps
from .engine.torch_steps import TorchBackwardSteps, TorchForwardSteps
from .engine.walk import SUBLAYERS
from .layout.plan import Plan
from .layout.precision import Precision
from .native.applicability import kernel_precision, unknown_variant
from .native.applicability import unsupported_reason as kernel_unsupported_reason
from .native.library import kernel_key
from .native.steps import KernelBackwardSteps, KernelForwardSteps
from .request import WalkRequest
from .stack import Stack


class Backend(Protocol):
    """A way to compute the steps of a walk.

    Attributes:
        forward_steps, backward_steps: what walks the steps.
    """

    forward_steps: type[ForwardSteps]
    backward_steps: type[BackwardSteps]

    def unsupported_reason(self, stack: Stack, request: WalkRequest, plan: Plan, precision: Precision) -> str | None:
        """Why it does not compute this walk, as half a sentence; None if it does.

        Args:
            precision: the types in which operations of torch would compute it.
        """

    def precision(self, request: WalkRequest, precision: Precision) -> Precision:
        """The types in which it computes, from those of operations of torch."""

    def describe(self) -> str:
        """What it is, in words. Backends that are described differently compute the same up to rounding."""


class KernelBackend:
    """The compiled kernel, for CPUs and the common variants."""

    forward_steps: type[ForwardSteps] = KernelForwardSteps
    backward_steps: type[BackwardSteps] = KernelBackwardSteps

    def unsupported_reason(self, stack: Stack, request: WalkRequest, plan: Plan, precision: Precision) -> str | None:
        if stack.config.memory_start == "zeros" and request.visibility is not None:
            return "the kernel does not know zero states after a reset"
        return unknown_variant(stack.config) or kernel_unsupported_reason(plan, precision, request.x)

    def precision(self, request: WalkRequest, precision: Precision) -> Precision:
        return kernel_precision(precision, request.x)

    def describe(self) -> str:
        return f"the compiled kernel {kernel_key()}"


class TorchBackend:
    """Operations of torch, for all variants, devices and types."""

    forward_steps: type[ForwardSteps] = TorchForwardSteps
    backward_steps: type[BackwardSteps] = TorchBackwardSteps

    def unsupported_reason(self, stack: Stack, request: WalkRequest, plan: Plan, precision: Precision) -> str | None:
        return None

    def precision(self, request: WalkRequest, precision: Precision) -> Precision:
        return precision

    def describe(self) -> str:
        return "torch operations"


BACKENDS: list[Backend] = [KernelBackend(), TorchBackend()]


class Choice(NamedTuple):
    """The way to compute a walk.

    Attributes:
        backend: None for the definition.
        reason: why it is the definition; None if it is not.
    """

    backend: Backend | None
    reason: str | None


def needs_definition(stack: Stack, x: Tensor) -> str | None:
    """Why no backend computes a walk, as half a sentence; None if one may.

    Backends read parameters and call no module, and their gradients are computed once.

    Args:
        x: a tensor of the type of the input.
    """
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is on"
    config = stack.config
    if config.memory_norm == "layer" and len({norm.eps for norm in stack.memory_norms()}) > 1:
        return "the layers' norms have different eps"
    for name, sublayer in stack.layers[0].sublayers():
        if not any(cls in SUBLAYERS for cls in type(sublayer).__mro__):
            return f"no operations are known for {name}, a {type(sublayer).__name__}"
    return difference_from_configuration(stack, x)


def choose(stack: Stack, request: WalkRequest, plan: Plan, precision: Precision) -> Choice:
    """The first backend that computes a walk; arguments are those of `Backend.unsupported_reason`."""
    reason = needs_definition(stack, request.x)
    return choose_backend(stack, request, plan, precision) if reason is None else Choice(None, reason)


def choose_backend(stack: Stack, request: WalkRequest, plan: Plan, precision: Precision) -> Choice:
    """`choose` for a stack that needs no definition."""
    reason = None
    for backend in BACKENDS:
        reason = backend.unsupported_reason(stack, request, plan, precision)
        if reason is None:
            return Choice(backend, None)
    return Choice(None, reason)
