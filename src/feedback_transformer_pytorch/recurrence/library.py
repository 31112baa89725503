"""The walk as operators of `torch.library`: one opaque node for `torch.compile` and `torch.export`.

`walk_as_operator` is what a traced model calls. It decides while torch traces whether the modules compute what the
configuration says, and traces the definition where they do not. Otherwise it calls the operator
`feedback_transformer_pytorch::walk`, whose implementation walks in eager mode: in there, and only in there, a backend
is chosen and numbers are read. Its gradient is `feedback_transformer_pytorch::walk_backward`.

The operator saves what `recompute=True` saves, the states between layers (L+1, T*B, D), and recomputes the rest in the
backward pass. What a backend would save besides has a shape that depends on the machine, and a traced graph must not.
So forward and backward together take longer than in eager mode. `torch.export` saves nothing: an exported program whose
gradient is taken walks forward twice.

Batch and time may be dynamic: no shape that the operators give depends on more than sums and products of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..autocast import autocast_dtype
from ..config import FIELD_NAMES, FeedbackConfig, fields_of
from ..layers import ContextKeysValues
from ..segments import Visibility
from .applicability import warn_once, without_numbers
from .backends import Backend, choose_backend, needs_definition
from .engine.backward import backward
from .engine.forward import forward
from .engine.walk import Walk, WalkSpec, inputs_of
from .fused import Prepared, prepare
from .layout.buffer import MemoryBuffer
from .layout.tape import Values
from .random_numbers import restored
from .request import Walked, WalkRequest
from .stack import Stack
from .stepwise import stepwise
from .substitution import with_parameters

NAMESPACE = "feedback_transformer_pytorch"


def walk_as_operator(stack: Stack, request: WalkRequest) -> Walked:
    """Walks a sequence by the operator; where it does not apply, by the definition.

    The gradients of parameters that nothing depends on are zeros, and there are no second derivatives.
    """
    config, x, visibility, training = stack.config, request.x, request.visibility, stack.training
    parameters = [parameter for _, parameter in stack.named_parameters()]
    # What a trace must notice when it changes: `_described` itself is not traced.
    spec = stack.untraced(_described, id(stack), fields_of(config), training, autocast_dtype(x))
    context = request.context
    is_empty = not torch.compiler.is_compiling() and not len(x)
    if is_empty or not spec or isinstance(context, ContextKeysValues) or any(p.dtype != x.dtype for p in parameters):
        return stepwise(stack, request)
    save = False
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        inputs = [x, request.keys, request.values, *parameters]
        if context is not None:
            inputs.append(context)
        save = any(tensor.requires_grad for tensor in inputs)
    seed = None
    if training and (config.attn_dropout or config.ff_dropout):
        seed = torch.randint(2**62, (), device="cpu")
    states, keys, values, stored, _ = _walk(
        x,
        request.keys,
        request.values,
        context,
        request.context_mask,
        None if visibility is None else visibility.context_length,
        None if visibility is None else visibility.single_token,
        seed,
        parameters,
        spec,
        save,
    )
    return Walked(states, keys, values, None) if config.carry == "keys" else Walked(states, None, None, stored)


def _described(stack: Stack, _: int, fields: tuple[Any, ...], training: bool, autocast: torch.dtype | None) -> str:
    """What the operators must know besides tensors, as JSON; empty where the definition is needed.

    Args:
        _: the identity of the stack, so that a trace is of one stack.
        fields: the values of the configuration.
    """
    reason = needs_definition(stack, stack.layer_weight)
    if reason is not None:
        warn_once(reason)
        return ""
    eps = {name: module.eps for name, module in stack.named_modules() if isinstance(module, nn.LayerNorm)}
    config = dict(zip(FIELD_NAMES, fields, strict=True))
    dtype = None if autocast is None else str(autocast).removeprefix("torch.")
    return json.dumps({"config": config, "training": training, "autocast": dtype, "eps": eps}, sort_keys=True)


class _Spec(NamedTuple):
    """What `_described` says."""

    config: FeedbackConfig
    training: bool
    autocast: torch.dtype | None
    eps: dict[str, float]

    def out_dtype(self, x: Tensor) -> torch.dtype:
        """The type of the keys and values that come out."""
        return x.dtype if self.autocast is None else self.autocast


@lru_cache(maxsize=64)
def _parsed(spec: str) -> _Spec:
    found = json.loads(spec)
    dtype = None if found["autocast"] is None else getattr(torch, found["autocast"])
    return _Spec(FeedbackConfig.from_dict(found["config"]), found["training"], dtype, found["eps"])


@lru_cache(maxsize=64)
def _stack(spec: str) -> Stack:
    """A stack without numbers."""
    config, training, _, eps = _parsed(spec)
    with without_numbers():
        stack = Stack(config).train(training)
    for name, value in eps.items():
        norm = stack.get_submodule(name)
        assert isinstance(norm, nn.LayerNorm)
        norm.eps = value
    return stack


def _stack_of(spec: str, parameters: Sequence[Tensor]) -> Stack:
    """A stack with these parameters, in the order of `named_parameters`."""
    stack = _stack(spec)
    names = [name for name, _ in stack.named_parameters()]
    return with_parameters(stack, dict(zip(names, parameters, strict=True)))


class _SetUp(NamedTuple):
    """A walk inside an operator."""

    prepared: Prepared
    backend: Backend
    spec: WalkSpec
    tensors: dict[str, Tensor | None]

    @classmethod
    def of(cls, stack: Stack, request: WalkRequest, autocast: torch.dtype | None) -> _SetUp:
        with torch.autocast(request.x.device.type, dtype=autocast, enabled=autocast is not None):
            prepared = prepare(stack, request)
        backend, reason = choose_backend(stack, prepared.request, prepared.plan, prepared.precision)
        assert backend is not None, reason
        tensors = inputs_of(dict(stack.named_parameters()), prepared.request)
        return cls(prepared, backend, prepared.spec(stack, backend), tensors)

    def empty_masks(self) -> Values:
        """Dropout masks, unwritten."""
        layout = self.spec.layout
        return layout.empty(layout.masks, layout.plan.segments, self.prepared.request.x)


@torch.library.custom_op(f"{NAMESPACE}::walk", mutates_args=())
def _walk(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    context: Tensor | None,
    context_mask: Tensor | None,
    context_length: Tensor | None,
    single_token: Tensor | None,
    seed: Tensor | None,
    parameters: Sequence[Tensor],
    spec: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Walks a sequence; see `WalkRequest` and `Walked`.

    Args:
        seed: a whole number (), of the dropout masks; None without dropout.
        parameters: in the order of the stack's `named_parameters`.
        save: whether the states are saved for the backward pass.

    Returns:
        states, keys, values, stored (empty where keys are carried), and what is saved (L+1, T*B, D) or empty.
    """
    parsed = _parsed(spec)
    request = WalkRequest(x, keys, values, _visibility(context_length, single_token), context, context_mask)

    def run(stack: Stack) -> tuple[Tensor, ...]:
        set_up = _SetUp.of(stack, request, parsed.autocast)
        walk = Walk(set_up.spec, set_up.tensors)
        states = walk.empty_states() if save else None
        with _seeded(seed, x.device):
            walked = forward(walk, set_up.backend.forward_steps, states, set_up.empty_masks())
        if walked.keys is None:  # the backward pass reads them
            all_keys, all_values = walk.buffer.all_keys_values(set_up.spec.out_dtype)
            walked = walked._replace(keys=all_keys, values=all_values)
        walked = set_up.prepared.with_unseen(walked, request)
        return tuple(x.new_empty(0) if tensor is None else tensor for tensor in (*walked[:4], states))

    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        found = run(_stack_of(spec, parameters))
    return _separate(found)  # type: ignore[return-value]


@_walk.register_fake
def _(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    context: Tensor | None,
    context_mask: Tensor | None,
    context_length: Tensor | None,
    single_token: Tensor | None,
    seed: Tensor | None,
    parameters: Sequence[Tensor],
    spec: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    parsed = _parsed(spec)
    batch, time, dim = x.shape
    all_slots = [x.new_empty(batch, keys.shape[1] + time, keys.shape[2], dtype=parsed.out_dtype(x)) for _ in range(2)]
    stored = x.new_empty(0) if parsed.config.carry == "keys" else x.new_empty(batch, time, dim)
    saved_states = x.new_empty(parsed.config.depth + 1, batch * time, dim) if save else x.new_empty(0)
    return x.new_empty(batch, time, dim), all_slots[0], all_slots[1], stored, saved_states


@torch.library.custom_op(f"{NAMESPACE}::walk_backward", mutates_args=())
def _walk_backward(
    grad_states: Tensor | None,
    grad_keys: Tensor | None,
    grad_values: Tensor | None,
    grad_stored: Tensor | None,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    context: Tensor | None,
    context_mask: Tensor | None,
    context_length: Tensor | None,
    single_token: Tensor | None,
    seed: Tensor | None,
    parameters: Sequence[Tensor],
    all_keys: Tensor,
    all_values: Tensor,
    saved_states: Tensor,
    spec: str,
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    """The gradients of `walk`.

    Args:
        all_keys, all_values, saved_states: what `walk` returned. Where nothing was saved, the walk is repeated.
        needs_grad: of x, keys, values, context if there is one, and the parameters, whether a gradient is needed.

    Returns:
        the gradients that are needed, in this order.
    """
    parsed = _parsed(spec)
    request = WalkRequest(x, keys, values, _visibility(context_length, single_token), context, context_mask)

    def run(stack: Stack) -> list[Tensor]:
        set_up = _SetUp.of(stack, request, parsed.autocast)
        prepared, unseen, backend = set_up.prepared, set_up.prepared.unseen, set_up.backend
        inputs = {name: tensor for name, tensor in set_up.tensors.items() if tensor is not None}
        whole = {**inputs, "keys": keys, "values": values}
        needed = [name for name, needs in zip(inputs, needs_grad, strict=True) if needs]
        masks, states, buffer = set_up.empty_masks(), saved_states, None
        with _seeded(seed, x.device):
            if saved_states.numel():
                slots = all_keys[:, unseen:], all_values[:, unseen:]
                buffer = MemoryBuffer.fresh(set_up.spec.layout, *slots)
                walk = Walk(set_up.spec, set_up.tensors, needed, buffer)
                segments = prepared.plan.segments
                for segment, at in zip(segments, walk.layout.steps(segments, masks), strict=True):
                    walk.draw(segment, at)
            else:
                walk = Walk(set_up.spec, set_up.tensors, needed)
                states = walk.empty_states()
                forward(walk, backend.forward_steps, states, masks)
        seen = [None if grad is None else grad[:, unseen:] for grad in (grad_keys, grad_values)]
        grads: Any = Walked(grad_states, seen[0], seen[1], grad_stored)  # type: ignore[arg-type]
        found: dict[str, Tensor | None] = {**backward(walk, backend.backward_steps, grads, states, masks, True)}
        if unseen:
            for name, grad in (("keys", grad_keys), ("values", grad_values)):
                found[name] = _before(found[name], request.keys[:, :unseen], grad)
        by_need = ((found.get(name), whole[name]) for name in needed)
        return [tensor.new_zeros(tensor.shape) if grad is None else grad for grad, tensor in by_need]

    # An operator runs below autograd, but the walk computes some gradients by it.
    autograd = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    with autograd, torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        found = run(_stack_of(spec, parameters))
    return list(_separate(found))


@_walk_backward.register_fake
def _(
    grad_states: Tensor | None,
    grad_keys: Tensor | None,
    grad_values: Tensor | None,
    grad_stored: Tensor | None,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    context: Tensor | None,
    context_mask: Tensor | None,
    context_length: Tensor | None,
    single_token: Tensor | None,
    seed: Tensor | None,
    parameters: Sequence[Tensor],
    all_keys: Tensor,
    all_values: Tensor,
    saved_states: Tensor,
    spec: str,
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    inputs = [x, keys, values, *([] if context is None else [context]), *parameters]
    return [tensor.new_empty(tensor.shape) for tensor, needs in zip(inputs, needs_grad, strict=True) if needs]


def _set_up_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, parameters, ctx.spec, _ = inputs
    _, keys, values, stored, saved_states = output
    carries_keys = _parsed(ctx.spec).config.carry == "keys"
    ctx.mark_non_differentiable(saved_states, *((stored,) if carries_keys else (keys, values)))
    ctx.set_materialize_grads(False)
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *parameters, keys, values, saved_states)


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    saved, count = ctx.saved_tensors, ctx.count
    tensors, parameters, after = saved[:count], saved[count:-3], saved[-3:]
    needs = ctx.needs_input_grad
    has_context = tensors[3] is not None
    needs_grad = [*needs[:3], *((needs[3],) if has_context else ()), *needs[count]]
    found = iter(_walk_backward(*grads[:4], *tensors, list(parameters), *after, ctx.spec, needs_grad))
    given = [next(found) if needed else None for needed in needs_grad]
    inputs, rest = given[: 3 + has_context], given[3 + has_context :]
    return *inputs, *[None] * (count - len(inputs)), rest, None, None


def _refuse(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        "the operator of the walk has no second derivatives; use a FeedbackDecoder in eager mode, or one with "
        "implementation='stepwise'"
    )


_walk.register_autograd(_gradients, setup_context=_set_up_context)
_walk_backward.register_autograd(_refuse)


def _visibility(context_length: Tensor | None, single_token: Tensor | None) -> Visibility | None:
    if context_length is None or single_token is None:
        return None
    return Visibility(context_length, single_token)


def _separate(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Contiguous tensors of which none shares memory with another: operators may return nothing else."""
    seen: set[int] = set()
    found = []
    for tensor in tensors:
        tensor = tensor.contiguous()
        storage = tensor.untyped_storage()._cdata  # also of empty tensors, which have no address
        if storage in seen:
            tensor = tensor.clone()
        seen.add(storage)
        found.append(tensor)
    return tuple(found)


def _before(grad: Tensor | None, unseen: Tensor, grad_all: Tensor | None) -> Tensor | None:
    """The gradient of carried slots, from that of those that are seen and that of all slots that come out."""
    if grad is None:
        return None
    first = torch.zeros_like(unseen) if grad_all is None else grad_all[:, : unseen.shape[1]]
    return torch.cat([first.to(grad.dtype), grad], dim=1)


@contextlib.contextmanager
def _seeded(seed: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draws the random numbers that follow from a seed, and leaves torch's generators as they are; None changes
    nothing."""
    if seed is None:
        yield
        return
    with restored(device) as generator:
        generator.manual_seed(int(seed))
        yield
