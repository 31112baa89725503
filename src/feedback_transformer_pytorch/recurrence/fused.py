"""The same function as `stepwise`, fast: one autograd function over the whole sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autocast import autocast_dtype
from .adapters import without_adapters
from .applicability import warn_once
from .backends import Backend, choose
from .engine.backward import backward
from .engine.forward import forward
from .engine.walk import INPUTS, Walk, WalkSpec, inputs_of
from .layout.plan import Plan
from .layout.precision import Precision, choose_precision
from .random_numbers import generator_of, restored
from .request import Walked, WalkRequest
from .stack import Stack
from .stepwise import stepwise
from .substitution import with_parameters


@torch.compiler.disable  # type: ignore[untyped-decorator]
def fused(stack: Stack, request: WalkRequest, *, recompute: bool = False) -> Walked:
    """Walks a sequence through time, or calls `stepwise` where no backend applies.

    Args:
        recompute: save only the states between layers for the backward pass, and recompute the rest.
    """
    if not len(request.x):
        return stepwise(stack, request)
    prepared, unadapted = prepare(stack, request), without_adapters(stack)
    backend, reason = choose(unadapted.stack, request, prepared.plan, prepared.precision)
    if backend is None:
        assert reason is not None
        warn_once(reason)
        return stepwise(stack, request)
    x, spec = request.x, prepared.spec(unadapted.stack, backend)
    tensors = inputs_of(unadapted.parameters(), prepared.request)
    autocast = autocast_dtype(x) is not None
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors.values()):
            call = _Call(spec, backend, recompute, autocast, tuple(tensors))
            walked = Walked(*_Fused.apply(call, *tensors.values()))
        else:
            walk = Walk(spec, tensors)
            kinds = {**spec.layout.saved, **spec.layout.masks} if spec.attention else spec.layout.masks
            states = walk.empty_states() if spec.layer_states else None
            values = spec.layout.empty(kinds, prepared.plan.segments, x)
            walked = forward(walk, backend.forward_steps, states, values)
    return prepared.with_unseen(walked, request)


class Prepared(NamedTuple):
    """A request as backends take it.

    Attributes:
        request: without the carried slots that no head sees.
        unseen: how many slots these are.
        out_dtype: the type of the keys and values that come out.
        precision: the types in which operations of torch compute.
    """

    request: WalkRequest
    unseen: int
    plan: Plan
    out_dtype: torch.dtype
    precision: Precision

    def spec(self, stack: Stack, backend: Backend) -> WalkSpec:
        """What a backend walks."""
        precision = backend.precision(self.request, self.precision)
        return WalkSpec.of(stack, self.request, self.plan, self.out_dtype, precision)

    def with_unseen(self, walked: Walked, request: WalkRequest) -> Walked:
        """The result for the whole request, from that without the slots that no head sees."""
        unseen, dtype = self.unseen, self.out_dtype
        if not unseen or walked.keys is None or walked.values is None:
            return walked
        return walked._replace(
            keys=torch.cat([request.keys[:, :unseen].to(dtype), walked.keys], dim=1),
            values=torch.cat([request.values[:, :unseen].to(dtype), walked.values], dim=1),
        )


def prepare(stack: Stack, request: WalkRequest) -> Prepared:
    """Prepares a request for a walk in the types that the autocast now on asks for."""
    reach = stack.reach()
    unseen = max(0, request.keys.shape[1] - reach)
    seen = request._replace(keys=request.keys[:, unseen:], values=request.values[:, unseen:])
    batch, time = request.x.shape[:2]
    plan = Plan(batch, time, stack.config.seq_len, reach, seen.keys.shape[1])
    return Prepared(seen, unseen, plan, *choose_precision(request.x))


def describe_walk(stack: Stack, x: Tensor) -> str:
    """What `fused` walks an input like x (B, T, D) with: "the definition" where it falls back, "torch operations",
    or "the compiled kernel" and its key.

    Walks that are described differently compute the same up to rounding.
    """
    stack, config = without_adapters(stack).stack, stack.config
    empty = x.new_empty(x.shape[0], 0, config.memory_dim)
    plan = Plan(x.shape[0], x.shape[1], config.seq_len, config.mem_len, carried=0)
    backend = choose(stack, WalkRequest(x, empty, empty), plan, choose_precision(x)[1]).backend
    return "the definition" if backend is None else backend.describe()


class _Call(NamedTuple):
    """The arguments of a call that are no tensors."""

    spec: WalkSpec
    backend: Backend
    recompute: bool
    autocast: bool
    names: tuple[str, ...]

    def named(self, flat: Any) -> dict[str, Tensor | None]:
        """The tensors of a call by name."""
        return dict(zip(self.names, flat, strict=True))


class _Fused(torch.autograd.Function):
    """The walk, as autograd sees it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *flat: Tensor | None) -> tuple[Tensor | None, ...]:
        layout = call.spec.layout
        walk = Walk(call.spec, call.named(flat))
        x, segments = walk.x, layout.plan.segments
        masks = layout.empty(layout.masks, segments, x)
        ctx.rng = generator_of(x.device).get_state() if masks else None
        values = masks
        if not call.recompute or call.spec.attention:
            values = layout.empty(layout.saved, segments, x) | masks
        states = walk.empty_states()
        walked = forward(walk, call.backend.forward_steps, states, values)
        kept = masks if call.recompute else values
        ctx.call, ctx.value_names = call, tuple(kept)
        ctx.mark_non_differentiable(*(asked for asked in walked[-2:] if asked is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*flat, walk.buffer.buffer, states, *kept.values())
        return tuple(walked)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        count, unpacked = len(call.names), ctx.saved_tensors  # they may be read only once
        tensors, (buffer, states, *saved) = call.named(unpacked[:count]), unpacked[count:]
        needs_grad = {name for name, needs in zip(call.names, ctx.needs_input_grad[1:], strict=True) if needs}
        if torch.is_grad_enabled():
            with _replayed(ctx.rng, states.device):
                found: Mapping[str, Tensor | None] = _differentiable(call, tensors, needs_grad, grads)
        else:
            values = dict(zip(ctx.value_names, saved, strict=True))
            with torch.autocast(states.device.type, enabled=False):
                walk = Walk(call.spec, tensors, needs_grad, buffer)
                given: Any = Walked(*grads)  # type: ignore[arg-type]
                found = backward(walk, call.backend.backward_steps, given, states, values, call.recompute)
        return None, *(found.get(name) if name in needs_grad else None for name in call.names)


def _differentiable(
    call: _Call, tensors: Mapping[str, Tensor | None], needs_grad: set[str], grads: tuple[Tensor | None, ...]
) -> dict[str, Tensor | None]:
    """The gradients by the definition, so that they have gradients themselves (`create_graph=True`)."""
    spec = call.spec
    # Of views, so that only what is computed here counts, and not how one tensor was made of another.
    tensors = {name: None if tensor is None else tensor.view_as(tensor) for name, tensor in tensors.items()}
    named = {name: tensor for name, tensor in tensors.items() if name not in INPUTS and tensor is not None}
    x, keys, values, context = (tensors[name] for name in INPUTS)
    assert x is not None
    assert keys is not None
    assert values is not None
    request = WalkRequest(x, keys, values, spec.visibility, context, spec.context_mask)
    with torch.autocast(x.device.type, dtype=spec.out_dtype, enabled=call.autocast):
        walked = stepwise(with_parameters(spec.stack, named).train(spec.training), request)
    asked = {name: t for name, t in tensors.items() if name in needs_grad and t is not None}
    given = [
        (out, grad)
        for out, grad in zip(walked, grads, strict=True)
        if grad is not None and out is not None and out.requires_grad
    ]
    if not given:
        return {}
    found = torch.autograd.grad(
        [out for out, _ in given],
        list(asked.values()),
        [grad for _, grad in given],
        create_graph=True,
        allow_unused=True,
    )
    return dict(zip(asked, found, strict=True))


@contextlib.contextmanager
def _replayed(rng: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draws the same random numbers as when `rng` was taken; None changes nothing."""
    if rng is None:
        yield
        return
    with restored(device) as generator:
        generator.set_state(rng)
        yield
