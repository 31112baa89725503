"""The same function as `stepwise`, fast: one autograd function over the whole sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..memory import Memory
from ..segments import Visibility
from .applicability import unsupported_reason, warn_once
from .backward import backward
from .forward import forward
from .native.library import kernel_key
from .plan import Plan
from .stack import Stack
from .stepwise import stepwise
from .tape import Masks, Values
from .walk import Walk, WalkSpec, WalkTensors, parameter_names


@torch.compiler.disable  # type: ignore[untyped-decorator]
def fused(
    stack: Stack, x: Tensor, memory: Memory, visibility: Visibility | None = None, *, recompute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Walks x through time; arguments and results are those of `stepwise`, which it calls where it does not apply.

    Args:
        recompute: keep only the states between blocks for the backward pass, and recompute the rest.
    """
    reason = unsupported_reason(stack, x)
    if reason is not None:
        warn_once(reason)
        return stepwise(stack, x, memory, visibility)
    config = stack.config
    plan = Plan(x.shape[0], x.shape[1], config.seq_len, config.mem_len, memory.keys.shape[1])
    spec, inputs = WalkSpec.of(stack, x, plan, visibility), WalkTensors.of_stack(stack, x, memory)
    flat = inputs.flat()
    autocast = torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in flat):
            return _Fused.apply(_Call(stack, spec, recompute, autocast), *flat)
        masks = spec.layout.masks(plan.segments, x, spec.attn_dropout > 0, spec.ff_dropout > 0)
        return forward(Walk(spec, inputs), None, None, masks)


def describe_walk(stack: Stack, x: Tensor) -> str:
    """What `fused` walks an input like x (B, T, D) with: "the definition" where it falls back, "torch operations",
    or "the compiled kernel" and its key.

    Walks that are described differently compute the same up to rounding.
    """
    if unsupported_reason(stack, x) is not None:
        return "the definition"
    config = stack.config
    plan = Plan(x.shape[0], x.shape[1], config.seq_len, config.mem_len, carried=0)
    return f"the compiled kernel {kernel_key()}" if WalkSpec.of(stack, x, plan, None).compiled else "torch operations"


class _Call(NamedTuple):
    """The arguments of a call that are no tensors."""

    stack: Stack
    spec: WalkSpec
    recompute: bool
    autocast: bool


class _Fused(torch.autograd.Function):
    """The walk, as autograd sees it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *flat: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        spec, inputs = call.spec, WalkTensors.of(flat)
        layout, x = spec.layout, inputs.x
        segments = layout.plan.segments
        masks = layout.masks(segments, x, spec.attn_dropout > 0, spec.ff_dropout > 0)
        ctx.call, ctx.num_tensors = call, len(flat)
        ctx.rng = None if masks == (None, None) else _rng_state(x.device)
        values = None if call.recompute else layout.values(segments, x)
        states = x.new_empty(layout.config.depth + 1, x.shape[0] * x.shape[1], x.shape[2])
        walk = Walk(spec, inputs)
        outputs = forward(walk, states, values, masks)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*flat, walk.windows.buffer, states, *masks, *(values or ()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        saved = ctx.saved_tensors
        flat, (buffer, states, *rest) = saved[: ctx.num_tensors], saved[ctx.num_tensors :]
        needs_grad = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            with _replayed(ctx.rng, states.device):
                return None, *_differentiable(call, flat, needs_grad, grads)
        masks, values = Masks(*rest[:2]), Values(*rest[2:]) if rest[2:] else None
        with torch.autocast(states.device.type, enabled=False):
            walk = Walk(call.spec, WalkTensors.of(flat), needs_grad, buffer)
            return None, *backward(walk, grads, states, values, masks)


class _Definition(nn.Module):
    """The definition with its parameters as arguments, for `torch.func.functional_call`."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return stepwise(self.stack, *arguments)


def _differentiable(
    call: _Call, flat: Sequence[Tensor | None], needs_grad: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients by the definition, so that they have gradients themselves (`create_graph=True`)."""
    inputs, parameters = WalkTensors.of(flat), flat[3:]
    x, memory = inputs.x, Memory(inputs.keys, inputs.values)
    names = parameter_names(call.stack.config)
    named = {f"stack.{name}": p for name, p in zip(names, parameters, strict=True) if p is not None}
    with torch.autocast(x.device.type, dtype=call.spec.out_dtype, enabled=call.autocast):
        outputs = torch.func.functional_call(_Definition(call.stack), named, (x, memory, call.spec.visibility))
    asked = [tensor for tensor, wants in zip(flat, needs_grad, strict=True) if wants and tensor is not None]
    given = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in given], asked, [grad for _, grad in given], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if wants else None for wants in needs_grad]


def _rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextlib.contextmanager
def _replayed(rng: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draws the same random numbers as when `rng` was taken; None changes nothing."""
    if rng is None:
        yield
        return
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        if on_gpu:
            torch.cuda.set_rng_state(rng, device)
        else:
            torch.set_rng_state(rng)
        yield
