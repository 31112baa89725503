"""The walk through time over the ops of all layers: what both directions share.

Little is sequential: forward, the steps; backward, the steps' input gradients. Keys and values lie in one
buffer whose windows are views. The gradients of parameters, and of keys and values, wait for many steps and are then
large products. docs/design.md, section 4, has the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...layers import Attention, ContextKeysValues, CrossAttention, FeedForward, Sublayer
from ...position import DistanceBias
from ...segments import Visibility
from ..layout.buffer import MemoryBuffer
from ..layout.plan import Plan, Segment
from ..layout.precision import Precision
from ..layout.tape import Layout, Saved
from ..ops.attention import AttentionOps
from ..ops.cross_attention import CrossAttentionOps
from ..ops.feedforward import FeedForwardOps
from ..ops.linear import Linear
from ..ops.norm import Norm
from ..ops.parameters import Parameters
from ..ops.scores import SCORE_OPS, ScoreOps
from ..ops.span import SpanOps
from ..ops.sublayer import Residual, SublayerOps
from ..request import WalkRequest
from ..stack import NORM_EPS, Stack
from .derived import Derived, derive, parameter_gradients

# The names of the inputs that are no parameters of the stack.
INPUTS = ("x", "keys", "values", "context")


class WalkSpec(NamedTuple):
    """What a walk is about, besides tensors that have gradients.

    Attributes:
        out_dtype: the type of the keys and values that come out.
        training: whether dropout is on.
        made_context: the keys and values of the context, where they were made before; None where the context itself is
            among the tensors, and where there is none.
        attention, layer_states: whether the result has them.
    """

    stack: Stack
    layout: Layout
    visibility: Visibility | None
    context_mask: Tensor | None
    out_dtype: torch.dtype
    training: bool
    made_context: ContextKeysValues | None
    attention: bool
    layer_states: bool

    @classmethod
    def of(
        cls, stack: Stack, request: WalkRequest, plan: Plan, out_dtype: torch.dtype, precision: Precision
    ) -> WalkSpec:
        """That of a request, in the types of `precision`."""
        config, saved, masks = stack.config, dict[str, Saved](), dict[str, Saved]()
        made = request.context if isinstance(request.context, ContextKeysValues) else None
        for number, (name, module) in enumerate(stack.layers[0].sublayers()):
            ops = kind_of(module).ops
            saved |= Residual.saved(name, number, config, request.x.dtype)
            saved |= {f"{name}.{key}": kind for key, kind in ops.saved(config, precision).items()}
            if stack.training:
                found = ops.masks(config, precision, request.context_tokens)
                masks |= {f"{name}.{key}": kind for key, kind in found.items()}
        layout = Layout(config, plan, precision, saved, masks)
        asked = request.attention, request.layer_states
        return cls(stack, layout, request.visibility, request.context_mask, out_dtype, stack.training, made, *asked)

    @property
    def carries_states(self) -> bool:
        """Whether the stored states come out, in place of keys and values."""
        return self.layout.config.carry != "keys"


def inputs_of(parameters: Mapping[str, Tensor], request: WalkRequest) -> dict[str, Tensor | None]:
    """All tensors of a walk that may have gradients, by name: those of the request, and the parameters of the stack."""
    context = None if isinstance(request.context, ContextKeysValues) else request.context
    tensors: dict[str, Tensor | None] = dict(
        zip(INPUTS, (request.x, request.keys, request.values, context), strict=True)
    )
    return {**tensors, **parameters}


class Walk:
    """The ops of all layers, set up for one sequence.

    Attributes:
        stages: the sub-layers in their order, each in all layers.
        project: what makes keys and values of all banks from what is stored.
        memory_norm: the norm before that, without parameters; None for none.
    """

    def __init__(
        self,
        spec: WalkSpec,
        tensors: Mapping[str, Tensor | None],
        needs_grad: Collection[str] = (),
        buffer: Tensor | None = None,
    ) -> None:
        """Sets up.

        Args:
            tensors: as `inputs_of` gives them.
            needs_grad: the names of those whose gradients are needed.
            buffer: the memory buffer that a forward walk left; None for a fresh one.
        """
        self.spec, self.layout = spec, spec.layout
        self.config, self.plan, precision = self.layout.config, self.layout.plan, self.layout.precision
        x, keys, values = (tensors[name] for name in INPUTS[:3])
        assert x is not None
        assert keys is not None
        assert values is not None
        self.x, self.keys, self.values, self.context = x, keys, values, tensors["context"]
        self._leaves = {
            name: tensor.detach().requires_grad_(name in needs_grad)
            for name, tensor in tensors.items()
            if name not in INPUTS and tensor is not None
        }
        with torch.enable_grad():
            self.derived: Derived = derive(spec.stack, self._leaves)
        self.parameters = Parameters(
            {name: leaf.detach() for name, leaf in self._leaves.items()}, needs_grad, precision, self.plan
        )
        self.wide = torch.promote_types(precision.attention, torch.float32)
        self._set_up_terms(precision)
        self._set_up_memory(precision, buffer)
        self.stages = [self._stage(name) for name, _ in spec.stack.layers[0].sublayers()]

    def _set_up_terms(self, precision: Precision) -> None:
        self.biases = [term for term in self.derived.terms if isinstance(term, DistanceBias)]
        vectors: list[Any] = [term for term in self.derived.terms if not isinstance(term, DistanceBias)]
        self.score_terms: list[tuple[Any, ScoreOps]] = [
            (term, SCORE_OPS[type(term)](_detached(term), precision, any(t.requires_grad for t in term)))
            for term in vectors
        ]
        distances = self.config.mem_len + self.config.seq_len
        self.by_distance = self.x.new_zeros(1, distances, dtype=self.wide)
        for term in self.biases:
            self.by_distance = self.by_distance + term.bias.detach().to(self.wide)
        self.spans: SpanOps | None = None
        if self.derived.spans is not None and self.derived.reach is not None:
            groups = self.config.groups
            self.spans = SpanOps(self.derived.spans.detach(), self.derived.reach, groups, precision.attention)

    def _set_up_memory(self, precision: Precision, buffer: Tensor | None) -> None:
        plan, rows, steps = self.plan, self.plan.row_counts[0], len(self.plan.segments)
        if buffer is None:
            buffer = MemoryBuffer.fresh(self.layout, self.keys, self.values)
        stored = None
        if self.spec.carries_states:
            stored = self.x.new_empty(plan.batch * plan.time, self.config.dim)
        needs_distance = bool(self.score_terms) or self.spans is not None
        self.mix_weight = None if self.derived.mix is None else self.derived.mix.detach()
        weight, bias = self.derived.memory_weight, self.derived.memory_bias
        needs = (weight is not None and weight.requires_grad, bias is not None and bias.requires_grad)
        bias = None if bias is None else bias.detach()
        # A zero state stays zero in the norm, so that its keys and values are the bias.
        self.buffer = MemoryBuffer(
            self.layout, buffer, stored, self.by_distance, self.spec.visibility, needs_distance, bias
        )
        if weight is None:
            self.project = self.parameters.linear("to_kv")
        else:
            self.project = Linear(weight.detach(), bias, precision, needs, rows, steps)
        self.memory_norm: Norm | None = None
        if self.config.memory_norm != "none":
            self.memory_norm = Norm.plain(self.x, self.config.dim, memory_eps(self.spec.stack))

    def _stage(self, name: str) -> Residual:
        """One sub-layer in all layers."""
        layers, config = self.spec.stack.layers, self.config
        modules: list[Any] = [dict(layer.sublayers())[name] for layer in layers]
        names = [f"layers.{layer}.{name}" for layer in range(config.depth)]
        ops = kind_of(modules[0]).build(self, modules, names)
        shared = self.spec.stack.norm
        norms = [
            self.parameters.norm("norm", shared.eps)
            if module.norm is None and shared is not None
            else self.parameters.norm(f"{path}.norm", module.norm.eps)
            for module, path in zip(modules, names, strict=True)
        ]
        return Residual(ops, norms, config.norm, self.layout.precision.products)

    def empty_states(self) -> Tensor:
        """(L+1, T*B, D), unwritten: for the input of every layer and the top."""
        return self.x.new_empty(self.config.depth + 1, self.plan.batch * self.plan.time, self.config.dim)

    def mix(self, states: Tensor) -> Tensor:
        """States (L+1, R, D) to the one (R, D) that is stored."""
        if self.mix_weight is None:
            return states[-1]
        return torch.mm(self.mix_weight[None].to(states.dtype), states.flatten(1)).view(states.shape[1:])

    def store(self, segment: Segment, states: Tensor) -> None:
        """Puts what states (L+1, R, D) of a segment become into the memory."""
        mixed = self.mix(states)
        if self.buffer.stored is not None:
            self.buffer.stored[segment.rows] = mixed
        if self.memory_norm is not None:
            mixed = self.memory_norm.step(mixed)
        self.buffer.write(segment, self.project.step(mixed.to(self.layout.precision.products)))

    def draw(self, segment: Segment, at: Sequence[Any]) -> None:
        """Draws a segment's dropout masks, layer by layer."""
        if self.layout.masks:
            for step in at:
                for stage in self.stages:
                    stage.ops.draw(segment, step)

    def gradients(self, grad_bias: Tensor | None, grad_mix: Tensor | None) -> dict[str, Tensor]:
        """The gradients of the parameters, by name, at the end of a backward walk.

        Args:
            grad_bias: (H, M+S), of the biases by distance.
            grad_mix: (L+1,), of the weights in the mix.
        """
        derived, found = self.derived, self.parameters.gradients()
        pairs: list[tuple[Tensor | None, Tensor | None]] = [(derived.mix, grad_mix)]
        pairs += [(term.bias, grad_bias) for term in self.biases]
        for term, ops in self.score_terms:
            pairs += zip([t for t in term if t.is_floating_point()], ops.gradients, strict=True)
        if self.spans is not None:
            pairs.append((derived.spans, self.spans.gradient))
        if derived.memory_weight is not None:
            pairs += [
                (derived.memory_weight, self.project.gradients[0]),
                (derived.memory_bias, self.project.gradients[1]),
            ]
        for name, gradient in parameter_gradients(self._leaves, pairs).items():
            found[name] = found[name] + gradient if name in found else gradient
        return found


def memory_eps(stack: Stack) -> float:
    """The epsilon of the norm before the memory's projection."""
    return NORM_EPS if stack.config.memory_norm == "plain" else stack.memory_norms()[0].eps


def _detached(term: Any) -> Any:
    return type(term)(*(tensor.detach() for tensor in term))


def _attention(walk: Walk, modules: list[Any], names: list[str]) -> SublayerOps:
    terms = [ops for _, ops in walk.score_terms]
    grad_zero = walk.project.gradients[1]
    return AttentionOps(walk.parameters, modules, names, walk.layout, walk.buffer, terms, walk.spans, grad_zero)


def _cross_attention(walk: Walk, modules: list[Any], names: list[str]) -> SublayerOps:
    context = walk.spec.made_context if walk.context is None else walk.context.detach()
    assert context is not None
    return CrossAttentionOps(walk.parameters, modules, names, walk.layout, context, walk.spec.context_mask)


def _feedforward(walk: Walk, modules: list[Any], names: list[str]) -> SublayerOps:
    return FeedForwardOps(walk.parameters, modules, names)


class SublayerKind(NamedTuple):
    """What computes a sub-layer.

    Attributes:
        ops: the class, which says what is saved.
        build: sets it up for a walk, from the modules of all layers and their names.
    """

    ops: type[SublayerOps]
    build: Callable[[Walk, list[Any], list[str]], SublayerOps]


SUBLAYERS: dict[type[Sublayer], SublayerKind] = {
    Attention: SublayerKind(AttentionOps, _attention),
    CrossAttention: SublayerKind(CrossAttentionOps, _cross_attention),
    FeedForward: SublayerKind(FeedForwardOps, _feedforward),
}


def kind_of(module: Sublayer) -> SublayerKind:
    """What computes a sub-layer."""
    return next(SUBLAYERS[cls] for cls in type(module).__mro__ if cls in SUBLAYERS)
