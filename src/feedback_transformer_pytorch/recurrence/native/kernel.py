"""A walk's model as the kernel takes it: packed weights, and the numbers that every call needs."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ..triples import Linear, Norm
from ..walk import Walk
from . import structures
from .library import library

# For fewer segments preparing the weights takes longer than it saves.
LEAST_SEGMENTS = 8
# Multiply-adds of a layer from which on waking other threads pays.
WORK_TO_SHARE = 2**19
TRIPLES_PER_BLOCK = 6


def applies(walk: Walk) -> bool:
    """Whether the kernel computes this walk."""
    plan, precision, x = walk.plan, walk.layout.precision, walk.inputs.x
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or precision != (x.dtype, x.dtype):
        return False
    if len(plan.segments) < LEAST_SEGMENTS:
        return False
    compiled = library()
    # With more rows a step's products are large enough for a matrix library, and it is the better one.
    return compiled is not None and max(plan.row_counts) <= compiled.most_rows()


class Kernel:
    """The kernel set up for one direction of a walk.

    `forward`, `backward` and `end_block` take the model and the structure of that direction.
    """

    def __init__(self, walk: Walk, transposed: bool) -> None:
        """Packs the weights: as they are for the way forward, transposed for the way back."""
        config, plan, x = walk.config, walk.plan, walk.inputs.x
        compiled = library()
        assert compiled is not None
        # Autocast rounds weights to bf16; read as such they are half as many bytes.
        name = "bfloat16" if walk.problem.out_dtype == torch.bfloat16 else str(x.dtype).removeprefix("torch.")
        self._pack, self._panel = getattr(compiled, f"pack_{name}"), getattr(compiled, f"panel_{name}")()
        self._packed_dtype = getattr(torch, name)
        self.forward, self.backward = getattr(compiled, f"forward_{name}"), getattr(compiled, f"backward_{name}")
        self.end_block = getattr(compiled, f"end_block_{name}")
        self._transposed = transposed
        self._kept: list[Any] = []
        groups = config.kv_heads or config.heads
        rows = max(plan.row_counts)
        work = rows * (12 * config.dim + 2 * config.heads * config.dim_head) * config.dim
        threads = torch.get_num_threads() if work >= WORK_TO_SHARE else 1
        self._threads = threads
        blocks = (structures.Block * config.depth)()
        for layer, block in enumerate(blocks):
            self._fill(block, walk.triples[TRIPLES_PER_BLOCK * layer : TRIPLES_PER_BLOCK * (layer + 1)])
        self.model = structures.Model(
            threads=threads,
            layers=config.depth,
            batch=plan.batch,
            groups=groups,
            heads_per_group=config.heads // groups,
            width=config.dim_head,
            dim=config.dim,
            hidden=4 * config.dim,
            slots=plan.slots,
            pair_stride=(plan.slots + plan.time) * config.dim_head,
            blocks=ctypes.addressof(blocks),
            to_kv=self._linear(walk.to_kv.weight, None),
            mix=None if walk.mix_weight is None else self._address(walk.mix_weight.to(x.dtype)),
        )
        if walk.memory_norm is not None:
            norm = self._norm(walk.memory_norm)
            self.model.memory_norm = ctypes.addressof(norm)
            self._kept.append(norm)
        self._kept.append(blocks)

    def _fill(self, block: structures.Block, triples: list[Norm | Linear]) -> None:
        norm_a, to_q, to_out, norm_f, to_hidden, from_hidden = triples
        assert isinstance(norm_a, Norm)
        assert isinstance(norm_f, Norm)
        assert isinstance(to_q, Linear)
        assert isinstance(to_out, Linear)
        assert isinstance(to_hidden, Linear)
        assert isinstance(from_hidden, Linear)
        block.norm_attention, block.norm_feedforward = self._norm(norm_a), self._norm(norm_f)
        block.to_q = self._linear(to_q.weight, to_q.bias, to_q.scale)
        block.to_out = self._linear(to_out.weight, to_out.bias)
        block.from_hidden = self._linear(from_hidden.weight, from_hidden.bias)
        if self._transposed:
            block.value = self._linear(to_hidden.weight, None)
            return
        biases = (None, None) if to_hidden.bias is None else to_hidden.bias.chunk(2)
        value, gate = zip(to_hidden.weight.chunk(2), biases, strict=True)
        block.value, block.gate = self._linear(*value), self._linear(*gate)

    def _norm(self, norm: Norm) -> structures.Norm:
        return structures.Norm(self._address(norm.weight), self._address(norm.bias), norm.eps)

    def _linear(self, weight: Tensor, bias: Tensor | None, scale: float = 1.0) -> structures.Linear:
        if self._transposed:
            weight, bias = weight.t(), None
        outputs, inputs = weight.shape
        panels = -(-outputs // self._panel)
        packed = weight.new_empty(panels, inputs, self._panel, dtype=self._packed_dtype)
        self._pack(
            ctypes.c_void_p(weight.data_ptr()),
            *(ctypes.c_int64(number) for number in (outputs, inputs, *weight.stride())),
            ctypes.c_double(scale),
            ctypes.c_void_p(packed.data_ptr()),
            ctypes.c_int64(self._threads),
        )
        return structures.Linear(self._address(packed), None if bias is None else self._address(bias), inputs, outputs)

    def _address(self, tensor: Tensor) -> int:
        """The address of a contiguous tensor, which is kept."""
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()
