"""A walk's model as the kernel takes it: packed weights, and the numbers that every call needs."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ...position import bucket, bucket_starts
from ..ops import Norm
from ..walk import Block, Walk
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
        """Packs the weights: as they are for the way forward, transposed for the way back."""
        config, plan, x = walk.config, walk.plan, walk.tensors.x
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
        self._kept: list[Any] = []
        groups = config.kv_heads or config.heads
        rows = max(plan.row_counts)
        weights = (3 * config.hidden_dim + 2 * config.heads * config.dim_head) * config.dim  # of a layer
        work = rows * (weights + 2 * plan.slots * config.heads * config.dim_head)
        threads = torch.get_num_threads() if work >= WORK_OF_A_THREAD * torch.get_num_threads() else 1
        self._threads = threads
        in_bytes = config.depth * weights * self._packed_dtype.itemsize
        self._streams = STREAMS if in_bytes >= compiled.bytes_to_stream() else 1
        blocks = (structures.Block * config.depth)()
        for filled, block in zip(blocks, walk.blocks, strict=True):
            self._fill(filled, block)
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
            blocks=ctypes.addressof(blocks),
            to_kv=self._linear(walk.to_kv.weight, None),
            mix=None if walk.mix_weight is None else self._address(walk.mix_weight.to(x.dtype)),
        )
        if walk.position is not None:
            table = walk.position.table.to(x.dtype)
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
            self._kept.append(norm)
        self._kept.append(blocks)

    def _fill(self, filled: structures.Block, block: Block) -> None:
        filled.norm_attention, filled.norm_feedforward = map(self._norm, (block.norm_attention, block.norm_feedforward))
        filled.to_q = self._linear(block.to_q.weight, block.to_q.bias, block.to_q.scale)
        filled.to_out = self._linear(block.to_out.weight, block.to_out.bias)
        filled.from_hidden = self._linear(block.from_hidden.weight, block.from_hidden.bias)
        weight, bias = block.to_hidden.weight, block.to_hidden.bias
        if self._transposed:
            filled.value = self._linear(weight, None)
        else:
            biases = (None, None) if bias is None else bias.chunk(2)
            filled.value, filled.gate = map(self._linear, weight.chunk(2), biases)

    def _norm(self, norm: Norm) -> structures.Norm:
        return structures.Norm(self._address(norm.weight), self._address(norm.bias), norm.eps)

    def _linear(self, weight: Tensor, bias: Tensor | None, scale: float = 1.0) -> structures.Linear:
        if self._transposed:
            weight, bias = weight.t(), None
        outputs, inputs = weight.shape
        panels = -(-outputs // self._panel)
        depth = inputs + inputs % 2 if self._in_pairs else inputs
        packed = weight.new_empty(panels, depth, self._panel, dtype=self._packed_dtype)
        self._pack(weight.data_ptr(), outputs, inputs, *weight.stride(), scale, packed.data_ptr(), self._threads)
        bias_address = None if bias is None else self._address(bias)
        return structures.Linear(self._address(packed), bias_address, inputs, outputs, self._streams)

    def _address(self, tensor: Tensor) -> int:
        """The address of a contiguous tensor, which is kept."""
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()
