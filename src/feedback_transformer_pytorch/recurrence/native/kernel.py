"""A walk's model as the kernel takes it: packed weights, and the numbers that every call needs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...position import bucket, bucket_starts
from ..engine.walk import Walk
from ..layout.rounding import narrowest_type
from ..ops.attention import AttentionOps
from ..ops.feedforward import FeedForwardOps
from ..ops.norm import Norm
from ..ops.scores import VectorScores
from . import structures
from .library import NARROW, library, name_of
from .packing import Packing

# Multiply-adds of a layer that each thread must have for waking all of them to pay.
WORK_OF_A_THREAD = 2**14
# In how many streams weights are read that do not stay in the caches between two steps. An odd number, so that the same
# columns of rows a power of two long do not fall on the same places of the nearest cache.
STREAMS = 7


def threads_for(work: int) -> int:
    """How many threads share so many multiply-adds."""
    threads = torch.get_num_threads()
    return threads if work >= WORK_OF_A_THREAD * threads else 1


def streams_for(in_bytes: int) -> int:
    """In how many streams weights of so many bytes in all are read."""
    compiled = library()
    assert compiled is not None
    return STREAMS if in_bytes >= compiled.bytes_to_stream() else 1


class Kernel:
    """The kernel set up for one direction of a walk.

    `forward`, or `backward` and `end_strip`, take the model and the structure of that direction.
    """

    def __init__(self, walk: Walk, *, transposed: bool, narrow: bool = False) -> None:
        """Packs the weights: as they are for the forward pass, transposed for the backward pass.

        Args:
            narrow: read weights in float32 that are rounded to a type of fewer bytes in that type, forward.
        """
        config, plan, x = walk.config, walk.plan, walk.x
        compiled = library()
        assert compiled is not None
        name, packed_dtype = _packed_type(walk, narrow)
        if transposed:
            self.backward = getattr(compiled, f"backward_{name}")
            self.end_strip = getattr(compiled, f"end_strip_{name}")
        else:
            self.forward = getattr(compiled, f"forward_{name}")
        self._transposed = transposed
        self._references: list[Any] = []
        groups = config.groups
        rows = max(plan.row_counts)
        weights = (3 * config.hidden_dim + 2 * config.heads * config.dim_head) * config.dim  # of a layer
        threads = threads_for(rows * (weights + 2 * plan.slots * config.heads * config.dim_head))
        streams = streams_for(config.depth * weights * packed_dtype.itemsize)
        self._packing = Packing(name, packed_dtype, threads, streams)
        self._address = self._packing.address
        layers = (structures.LayerWeights * config.depth)()
        for layer, filled in enumerate(layers):
            self._fill(filled, walk, layer)
        self.model = structures.Model(
            threads=threads,
            layers=config.depth,
            batch=plan.batch,
            groups=groups,
            heads_per_group=config.heads // groups,
            width=config.dim_head,
            dim=config.dim,
            hidden=config.hidden_dim,
            slots=plan.slots,
            pair_stride=(plan.slots + plan.time) * config.dim_head,
            layer_weights=ctypes.addressof(layers),
            to_kv=self._linear(walk.project.weight, None),
            mix=None if walk.mix_weight is None else self._address(walk.mix_weight.to(x.dtype)),
        )
        vectors = position_vectors(walk)
        if vectors is not None:
            table = vectors.table.to(x.dtype)
            self.model.position = self._address(table)
            self.model.position_t = self._address(table.t().contiguous())
            self.model.bucket_starts = self._address(bucket_starts())
            longest = max(segment.length for segment in plan.segments)
            farthest = plan.slots + longest - 1
            distance = torch.arange(farthest, -1 - longest, -1, device="cpu").clamp(min=0)
            self.model.bucket_of = self._address(bucket(distance).int())
            self.model.farthest = farthest
        if walk.memory_norm is not None:
            norm = self._norm(walk.memory_norm)
            self.model.memory_norm = ctypes.addressof(norm)
            self._references.append(norm)
        self._references.append(layers)

    def _fill(self, filled: structures.LayerWeights, walk: Walk, layer: int) -> None:
        attention, feedforward = sublayers(walk)
        norms = (stage.norms[layer] for stage in walk.stages)
        filled.norm_attention, filled.norm_feedforward = map(self._norm, norms)
        to_q, to_out = attention.to_q[layer], attention.to_out[layer]
        filled.to_q = self._linear(to_q.weight, to_q.bias, to_q.scale)
        filled.to_out = self._linear(to_out.weight, to_out.bias)
        to_hidden, from_hidden = feedforward.to_hidden[layer], feedforward.to_out[layer]
        filled.from_hidden = self._linear(from_hidden.weight, from_hidden.bias)
        weight, bias = to_hidden.weight, to_hidden.bias
        if self._transposed:
            filled.value = self._linear(weight, None)
        else:
            biases = (None, None) if bias is None else bias.chunk(2)
            filled.value, filled.gate = map(self._linear, weight.chunk(2), biases)

    def _norm(self, norm: Norm) -> structures.NormWeights:
        return structures.NormWeights(self._address(norm.weight), self._address(norm.bias), norm.eps)

    def _linear(self, weight: Tensor, bias: Tensor | None, scale: float = 1.0) -> structures.PackedLinear:
        if self._transposed:
            weight, bias = weight.t(), None
        return self._packing.linear(weight, bias, scale)


def _packed_type(walk: Walk, narrow: bool) -> tuple[str, torch.dtype]:
    """The type that weights are packed in: as the names of the kernel's functions have it, and what a number is."""
    precision = walk.layout.precision
    if narrow and precision.weights == torch.float32:
        found = narrowest_type(_weights(walk))
        if found is not None:
            return NARROW[found], found
    # Where inputs are rounded too, two of them are multiplied at once, and lie beside each other.
    in_pairs = precision.inputs != walk.x.dtype
    return name_of(precision.weights) + ("_pairs" if in_pairs else ""), precision.weights


def _weights(walk: Walk) -> Iterator[Tensor]:
    """All weights that a step multiplies with."""
    yield walk.project.weight
    attention, feedforward = sublayers(walk)
    for ops in (attention.to_q, attention.to_out, feedforward.to_hidden, feedforward.to_out):
        yield from (linear.weight for linear in ops)


def sublayers(walk: Walk) -> tuple[AttentionOps, FeedForwardOps]:
    """The sub-layers of a walk that the kernel knows."""
    attention, feedforward = (stage.ops for stage in walk.stages)
    assert isinstance(attention, AttentionOps)
    assert isinstance(feedforward, FeedForwardOps)
    return attention, feedforward


def position_vectors(walk: Walk) -> VectorScores | None:
    """The vectors that queries are multiplied with; None where distances only add biases."""
    found = [ops for _, ops in walk.score_terms]
    assert all(isinstance(ops, VectorScores) for ops in found)
    return found[0] if found else None  # type: ignore[return-value]
