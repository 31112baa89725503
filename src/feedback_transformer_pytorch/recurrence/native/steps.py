"""Segments walked by the kernel: the same two classes as those of `forward.py` and `backward.py`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from torch import Tensor

from ..chunk import Chunk
from ..plan import Segment
from ..sublayers import Window
from ..tape import Masks, Values
from ..triples import KeyValueGradient
from ..walk import Walk
from . import structures
from .kernel import Kernel
from .structures import Layers, point


class _Tables:
    """Points the layers of a structure at tensors, and moves them from segment to segment."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._by_row: list[tuple[Layers, int]] = []
        self._by_score: list[Layers] = []

    def rows(self, layers: Layers, tensors: Iterable[Tensor]) -> None:
        """A tensor of each layer, with a row for each token."""
        tensors = list(tensors)
        self._by_row.append((layers, tensors[0][0].numel()))
        self._kept += [tensors, point(layers, tensors)]

    def scores(self, layers: Layers, flat: Tensor, count: int, depth: int) -> None:
        """Flat scores of segments one behind the other, each with `count` numbers in all layers."""
        tensors = [flat[layer * count // depth :] for layer in range(depth)]
        self._by_score.append(layers)
        self._kept += [tensors, point(layers, tensors)]

    def values(self, at: structures.Segment, values: Values, count: int) -> None:
        """Values that both directions use, for segments with `count` scores."""
        self.rows(at.q, values.q)
        self.rows(at.out, values.out)
        if values.own is not None:
            self.rows(at.own_kv, values.own)
        self.scores(at.probabilities, values.probabilities, count, len(values.q))

    def move(self, row: int, score: int) -> None:
        """Moves to a segment, by its first row and its first score."""
        for layers, width in self._by_row:
            layers.offset = row * width
        for layers in self._by_score:
            layers.offset = score


def _fill(at: structures.Segment, walk: Walk, segment: Segment, window: Window) -> list[Tensor | None]:
    """Fills in what a segment sees, and returns what must be kept for the call."""
    bias = window.bias.contiguous()
    seeing = None if window.seeing is None else window.seeing.contiguous()
    at.length, at.own = segment.length, segment.length if segment.length > 1 else 0
    at.hidden_slots = walk.plan.slots - walk.plan.filled(segment)
    at.keys, at.values, at.bias = window.keys.data_ptr(), window.values.data_ptr(), bias.data_ptr()
    at.seeing = None if seeing is None else seeing.data_ptr()
    return [bias, seeing]


def _row(tensor: Tensor, row: int) -> int:
    """The address of a row of a contiguous tensor."""
    return tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size()


class ForwardSteps:
    """Segments walked forward."""

    def __init__(
        self, walk: Walk, states: Tensor | None, places: list[Tensor], values: Values | None, masks: Masks
    ) -> None:
        """Sets up.

        Args:
            states: (L+1, T*B, D); None to keep nothing.
            places: for each segment (L+1, R, D), its part of `states` or room for it.
            values, masks: of all segments; values None to keep nothing.
        """
        self._walk, self._kernel = walk, Kernel(walk, transposed=False)
        self._states, self._places, self._values, self._masks = states, places, values, masks
        self._counts = walk.layout.score_counts(walk.plan.segments)
        self._scores = [0, *accumulate(self._counts)]
        self._calls: dict[int, tuple[structures.Forward, _Tables, Any]] = {}

    def step(self, segment: Segment, window: Window) -> None:
        """Takes a segment from `states[0]` to the top, and puts it into the memory."""
        if segment.length not in self._calls:
            self._calls[segment.length] = self._prepare(segment)
        at, moving, _ = self._calls[segment.length]
        moving.move(segment.rows.start, self._scores[segment.index])
        kept = _fill(at.segment, self._walk, segment, window)
        slots = self._walk.windows.slots(segment)
        at.new_keys, at.new_values = slots[0].data_ptr(), slots[1].data_ptr()
        self._kernel.forward(ctypes.byref(self._kernel.model), ctypes.byref(at))
        del kept

    def _prepare(self, segment: Segment) -> tuple[structures.Forward, _Tables, Any]:
        """For segments of this length, a structure, what moves with the segment, and what must be kept."""
        layout, x = self._walk.layout, self._walk.inputs.x
        at, moving, resting = structures.Forward(), _Tables(), _Tables()
        if self._states is None:
            resting.rows(at.states, self._places[segment.index])
        else:
            moving.rows(at.states, self._states)
        values, tables = self._values, moving
        if values is None:
            values, tables = layout.values([segment], x), resting
        count = self._counts[segment.index]
        tables.values(at.segment, values, count)
        tables.rows(at.middle, values.middle)
        tables.rows(at.hidden, values.hidden)
        if self._masks.probabilities is not None:
            moving.scores(at.segment.keep_probabilities, self._masks.probabilities, count, layout.config.depth)
        if self._masks.hidden is not None:
            moving.rows(at.keep_hidden, self._masks.hidden)
        rows, dim = segment.length * x.shape[0], x.shape[2]
        room = [x.new_empty(rows, width) for width in (dim, 4 * dim, 2 * layout.config.kv_dim)]
        at.normed, at.product, at.kv = (tensor.data_ptr() for tensor in room)
        return at, moving, (resting, room)


class BackwardSteps:
    """Segments walked back."""

    def __init__(self, walk: Walk, memory: KeyValueGradient) -> None:
        self._walk, self._memory, self._kernel = walk, memory, Kernel(walk, transposed=True)
        rows, config, x = max(walk.plan.row_counts), walk.config, walk.inputs.x
        self._room = [x.new_empty(rows, width) for width in (config.dim, config.heads * config.dim_head, config.dim)]

    def begin(self, chunk: Chunk) -> None:
        """Begins a chunk, which the sub-layers have prepared."""
        self._chunk, self._counts = chunk, self._walk.layout.score_counts(chunk.segments)
        self._scores = [0, *accumulate(self._counts)]
        self._calls: dict[int, tuple[structures.Backward, _Tables]] = {}

    def step(self, segment: Segment, place: int, index: int, grad_scores: Tensor) -> None:
        """Walks one segment, number `place` of its block and `index` of its chunk, down all layers.

        Args:
            grad_scores: (L, BG, Q, n + own), written.
        """
        walk, chunk, memory = self._walk, self._chunk, self._memory
        if segment.length not in self._calls:
            self._calls[segment.length] = self._prepare(segment, index)
        at, tables = self._calls[segment.length]
        row = segment.rows.start - chunk.segments[0].rows.start
        tables.move(row, self._scores[index])
        kept = [_fill(at.segment, walk, segment, walk.windows.window(segment)), point(at.grad_scores, grad_scores)]
        at.grad_top, at.grad_mixed = _row(chunk.grad_tops, row), _row(chunk.grad_mixed, row)
        at.grad_kv = _row(chunk.grad_kv, row)
        if chunk.moments is not None:
            at.mixed = _row(chunk.mixed, row)
            at.mixed_mean, at.mixed_rstd = (_row(moment, row) for moment in chunk.moments)
        at.total = memory.total[:, :, walk.plan.slots + segment.start :].data_ptr()
        at.total_stride = memory.total.stride(0)
        at.band, at.vectors = memory.band.data_ptr(), memory.vectors.data_ptr()
        at.place, at.places, at.columns = place, memory.band.shape[2], memory.band.shape[5]
        self._kernel.backward(ctypes.byref(self._kernel.model), ctypes.byref(at))
        del kept

    def _prepare(self, segment: Segment, index: int) -> tuple[structures.Backward, _Tables]:
        """For the chunk's segments of this length, a structure, and what moves with the segment."""
        chunk, at, tables = self._chunk, structures.Backward(), _Tables()
        count = self._counts[index]
        tables.values(at.segment, chunk.values, count)
        if chunk.masks.probabilities is not None:
            tables.scores(at.segment.keep_probabilities, chunk.masks.probabilities, count, len(chunk.values.q))
        tables.rows(at.states, chunk.states[:-1])
        tables.rows(at.middle, chunk.values.middle)
        tables.rows(at.grad_states, chunk.grad_states)
        tables.rows(at.grad_middle, chunk.grad_middles)
        attentions = [attention.chunk for attention in self._walk.attentions]
        tables.rows(at.mean_a, [each.mean for each in attentions])
        tables.rows(at.rstd_a, [each.rstd for each in attentions])
        tables.rows(at.grad_q, [each.grad_q for each in attentions])
        tables.rows(at.grad_normed_a, [each.grad_normed for each in attentions])
        own = [each.grad_own for each in attentions if each.grad_own is not None]
        if own:
            tables.rows(at.grad_own, own)
        feedforwards = [feedforward.chunk for feedforward in self._walk.feedforwards]
        tables.rows(at.mean_f, [each.mean for each in feedforwards])
        tables.rows(at.rstd_f, [each.rstd for each in feedforwards])
        tables.rows(at.slopes, [each.slopes for each in feedforwards])
        tables.rows(at.grad_hidden, [each.grad_hidden for each in feedforwards])
        tables.rows(at.grad_normed_f, [each.grad_normed for each in feedforwards])
        at.grad_middle_whole, at.grad_out, at.room = (tensor.data_ptr() for tensor in self._room)
        return at, tables
