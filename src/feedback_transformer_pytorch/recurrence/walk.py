"""The walk through time over the ops of all layers: what both directions share.

What is sequential is kept small: forward, the steps; backward, the steps' input gradients. Keys and values lie in one
buffer whose windows are views. The gradients of parameters, and of keys and values, wait for many steps and are then
large products. docs/design.md, section 4, has the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import FeedbackConfig
from ..memory import Memory
from ..position import bucket
from ..segments import Visibility
from .native.applicability import kernel_precision
from .ops import Attention, BucketScores, Linear, Norm
from .plan import Plan, Segment
from .precision import choose_precision
from .stack import NORM_EPS, Stack
from .sublayers import AttentionSublayer, FeedForwardSublayer
from .tape import Layout
from .windows import Windows

PARAMETERS_PER_BLOCK = 12


class WalkSpec(NamedTuple):
    """What a walk is about, besides tensors that have gradients.

    Attributes:
        compiled: whether the kernel walks the steps.
        out_dtype: the type of the keys and values that come out.
        attn_dropout, ff_dropout: the dropouts that are on.
        eps: of each block, those of its two norms.
    """

    layout: Layout
    compiled: bool
    visibility: Visibility | None
    out_dtype: torch.dtype
    attn_dropout: float
    ff_dropout: float
    eps: list[tuple[float, float]]

    @classmethod
    def of(cls, stack: Stack, x: Tensor, plan: Plan, visibility: Visibility | None) -> WalkSpec:
        """That of a stack, for an input like x under the autocast that is on."""
        out_dtype, precision = choose_precision(x)
        of_kernel = kernel_precision(plan, precision, x)
        return cls(
            layout=Layout(stack.config, plan, of_kernel or precision),
            compiled=of_kernel is not None,
            visibility=visibility,
            out_dtype=out_dtype,
            attn_dropout=stack.config.attn_dropout if stack.training else 0.0,
            ff_dropout=stack.config.ff_dropout if stack.training else 0.0,
            eps=[(block.attention.norm.eps, block.feedforward.norm.eps) for block in stack.blocks],
        )


class WalkTensors(NamedTuple):
    """All tensors that have gradients.

    Attributes:
        x: (B, T, D).
        keys, values: (B, carried, G*E).
        position: (buckets, H), biases, or (buckets, E), vectors.
        layer_weight: (L+1,).
        to_kv: (2*G*E, D).
        blocks: weight and bias (or None) of each module, block by block.
    """

    x: Tensor
    keys: Tensor
    values: Tensor
    position: Tensor
    layer_weight: Tensor
    to_kv: Tensor
    blocks: Sequence[Tensor | None]

    @classmethod
    def of(cls, flat: Sequence[Tensor | None]) -> WalkTensors:
        """From the row that `flat` gives."""
        return cls(*flat[:6], flat[6:])  # type: ignore[arg-type,call-arg]

    @classmethod
    def of_stack(cls, stack: Stack, x: Tensor, memory: Memory) -> WalkTensors:
        """x, the memory and the parameters of a stack."""
        parameters = dict(stack.named_parameters())
        return cls.of([x, *memory, *(parameters.get(name) for name in parameter_names(stack.config))])

    def flat(self) -> list[Tensor | None]:
        """All tensors in one row."""
        return [*self[:6], *self.blocks]


def parameter_names(config: FeedbackConfig) -> list[str]:
    """The names in a `Stack` of the inputs after x, keys and values, in their flat order."""
    modules = [f"attention.{name}" for name in ("norm", "to_q", "to_out")]
    modules += [f"feedforward.{name}" for name in ("norm", "to_hidden", "to_out")]
    blocks = [
        f"layers.{layer}.{module}.{parameter}"
        for layer in range(config.depth)
        for module in modules
        for parameter in ("weight", "bias")
    ]
    table = "vectors" if config.position == "relative" else "bias"
    return [f"position.{table}.weight", "layer_weight", "to_kv.weight", *blocks]


class Block(NamedTuple):
    """The ops of one block, in the order of its parameters."""

    norm_attention: Norm
    to_q: Linear
    to_out: Linear
    norm_feedforward: Norm
    to_hidden: Linear
    from_hidden: Linear


class Walk:
    """The ops of all layers, set up for one sequence."""

    def __init__(
        self,
        spec: WalkSpec,
        tensors: WalkTensors,
        needs_grad: Sequence[bool] | None = None,
        buffer: Tensor | None = None,
    ) -> None:
        """Sets up.

        Args:
            needs_grad: of which tensors, in their flat order, gradients are needed; None for none.
            buffer: the memory buffer that a forward walk left; None for a fresh one.
        """
        self.spec, self.layout, self.tensors = spec, spec.layout, tensors
        self.config, self.plan, precision = self.layout
        self.needs_grad = tuple(needs_grad or [False] * len(tensors.flat()))
        if buffer is None:
            buffer = Windows.fresh(self.layout, tensors.keys, tensors.values)
        self.wide = torch.promote_types(precision.attention, torch.float32)
        self.buckets = bucket(torch.arange(self.config.mem_len + self.config.seq_len, device=tensors.x.device))
        self.position: BucketScores | None = None
        if self.config.position == "relative":
            self.position = BucketScores(tensors.position, precision, self.needs_grad[3])
            by_distance = tensors.position.new_zeros(1, len(self.buckets), dtype=self.wide)
        else:
            by_distance = tensors.position.to(self.wide)[self.buckets].t()
        self.windows = Windows(self.layout, buffer, by_distance, spec.visibility)
        self.mix_weight = None if self.config.keep_last_hidden else tensors.layer_weight.softmax(0)
        self.memory_norm: Norm | None = None
        if self.config.norm_memory:
            dim = self.config.dim
            self.memory_norm = Norm(tensors.x.new_ones(dim), tensors.x.new_zeros(dim), NORM_EPS, (False, False))
        rows, steps = self.plan.row_counts[0], len(self.plan.segments)
        self.to_kv = Linear(tensors.to_kv, None, precision, (self.needs_grad[5], False), rows, steps)
        groups = self.config.kv_heads or self.config.heads
        attention = Attention(self.plan.batch, groups, self.config.heads // groups)
        self.attentions: list[AttentionSublayer] = []
        self.feedforwards: list[FeedForwardSublayer] = []
        self.blocks = [self._block(index, *eps) for index, eps in enumerate(spec.eps)]
        for norm_a, to_q, out_a, norm_f, hidden, out_f in self.blocks:
            dtype = precision.products
            self.attentions.append(AttentionSublayer(norm_a, to_q, self.to_kv, out_a, attention, self.position, dtype))
            self.feedforwards.append(FeedForwardSublayer(norm_f, hidden, out_f, dtype))

    def _block(self, index: int, eps_a: float, eps_f: float) -> Block:
        precision, first = self.layout.precision, PARAMETERS_PER_BLOCK * index
        rows, steps = self.plan.row_counts[0], len(self.plan.segments)
        parameters = self.tensors.blocks[first : first + PARAMETERS_PER_BLOCK]
        needs_grad = self.needs_grad[6 + first : 6 + first + PARAMETERS_PER_BLOCK]
        pairs = list(zip(parameters[::2], parameters[1::2], needs_grad[::2], needs_grad[1::2], strict=True))

        def norm(place: int, eps: float) -> Norm:
            weight, bias, *wants = pairs[place]
            assert weight is not None
            assert bias is not None
            return Norm(weight, bias, eps, (wants[0], wants[1]))

        def linear(place: int, scale: float = 1.0) -> Linear:
            weight, bias, *wants = pairs[place]
            assert weight is not None
            return Linear(weight, bias, precision, (wants[0], wants[1]), rows, steps, scale)

        return Block(
            norm(0, eps_a), linear(1, self.config.dim_head**-0.5), linear(2), norm(3, eps_f), linear(4), linear(5)
        )

    def mix(self, states: Tensor) -> Tensor:
        """States (L+1, R, D) to one (R, D)."""
        if self.mix_weight is None:
            return states[-1]
        return torch.mm(self.mix_weight[None].to(states.dtype), states.flatten(1)).view(states.shape[1:])

    def store(self, segment: Segment, states: Tensor) -> None:
        """Puts what states (L+1, R, D) of a segment become into the memory."""
        mixed = self.mix(states)
        if self.memory_norm is not None:
            mixed = self.memory_norm.step(mixed)
        self.windows.write(segment, self.to_kv.step(mixed.to(self.layout.precision.products)))
