"""A walk's model as the kernel takes it: packed weights, and the numbers that every call needs."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ...position import bucket, bucket_starts
from ..engine.walk import Walk
from ..ops.attention import AttentionOps
from ..ops.feedforward import FeedForwardOps
from ..ops.norm import Norm
from ..ops.scores import VectorScores
from . import structures
from .library import library, name_of

# Multiply-adds of a layer that each thread must have for waking all of them to pay.
WORK_OF_A_THREAD = 2**14
# In how many streams weights are read that do not stay in the caches between two steps. An odd number, so that the same
# columns of rows a power of two long do not fall on the same places of the nearest cache.
STREAMS = 7


class Kernel:
    """The kernel set up for one direction of a walk.

    `forward`, `backward` and `end_block` take the model and the structure of that direction.
    """

    def __init__(self, walk: Walk, transposed: bool) -> None:
        """Packs the weights: as they are for the forward pass, transposed for the backward pass."""
        config, plan, x = walk.config, walk.plan, walk.x
        compiled = library()
        assert compiled is not None
        precision = walk.layout.precision
        self._packed_dtype = precision.weights
        name = name_of(precision.weights)
        # Where inputs are rounded too, two of them are multiplied at once, and lie beside each other.
        self._in_pairs = precision.inputs != x.dtype
        if self._in_pairs:
            name += "_pairs"
        self._pack, self._panel = getattr(compiled, f"pack_{name}"), getattr(compiled, f"panel_{name}")()
        self.forward, self.backward = getattr(compiled, f"forward_{name}"), getattr(compiled, f"backward_{name}")
        self.end_block = getattr(compiled, f"end_block_{name}")
        self._transposed = transposed
        self._references: list[Any] = []
        groups = config.kv_heads or config.heads
        rows = max(plan.row_counts)
        weights = (3 * config.hidden_dim + 2 * config.heads * config.dim_head) * config.dim  # of a layer
        work = rows * (weights + 2 * plan.slots * config.heads * config.dim_head)
        threads = torch.get_num_threads() if work >= WORK_OF_A_THREAD * torch.get_num_threads() else 1
        self._threads = threads
        in_bytes = config.depth * weights * self._packed_dtype.itemsize
        self._streams = STREAMS if in_bytes >= compiled.bytes_to_stream() else 1
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
            blocks=ctypes.addressof(layers),
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
            distance = torch.arange(farthest, -1 - longest, -1).clamp(min=0)
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
        outputs, inputs = weight.shape
        panels = -(-outputs // self._panel)
        depth = inputs + inputs % 2 if self._in_pairs else inputs
        packed = weight.new_empty(panels, depth, self._panel, dtype=self._packed_dtype)
        self._pack(weight.data_ptr(), outputs, inputs, *weight.stride(), scale, packed.data_ptr(), self._threads)
        bias_address = None if bias is None else self._address(bias)
        return structures.PackedLinear(self._address(packed), bias_address, inputs, outputs, self._streams)

    def _address(self, tensor: Tensor) -> int:
        """The address of a contiguous tensor, which lives as long as this."""
        tensor = tensor.contiguous()
        self._references.append(tensor)
        return tensor.data_ptr()


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
