"""The steps of both directions by the compiled kernel; see `engine.protocols`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from torch import Tensor

from ..engine.protocols import StoredGradients
from ..engine.walk import Walk
from ..layout.plan import Segment
from ..layout.tape import Values
from ..ops.chunk import Chunk
from ..ops.key_value_gradient import KeyValueGradient
from . import structures
from .kernel import Kernel, position_vectors, sublayers
from .structures import Layers, point


class _Tables:
    """Points the layers of a structure at tensors, and moves them from segment to segment."""

    def __init__(self) -> None:
        self._references: list[Any] = []
        self._by_row: list[tuple[Layers, int]] = []
        self._by_score: list[Layers] = []

    def rows(self, layers: Layers, tensors: Iterable[Tensor]) -> None:
        """A tensor of each layer, with a row for each token."""
        tensors = list(tensors)
        self._by_row.append((layers, tensors[0][0].numel()))
        self.fixed(layers, tensors)

    def scores(self, layers: Layers, flat: Tensor, count: int, depth: int) -> None:
        """Flat scores of segments one behind the other, each with `count` numbers in all layers."""
        tensors = [flat[layer * count // depth :] for layer in range(depth)]
        self._by_score.append(layers)
        self.fixed(layers, tensors)

    def fixed(self, layers: Layers, tensors: Iterable[Tensor]) -> None:
        """A tensor of each layer that each segment uses from its start."""
        tensors = list(tensors)
        self._references += [tensors, point(layers, tensors)]

    def values(self, at: structures.SegmentData, values: Values, count: int) -> None:
        """Values that both directions use, for segments with `count` scores."""
        q, out, probabilities = (values[f"attention.{name}"] for name in ("q", "out", "probabilities"))
        assert q is not None
        assert out is not None
        assert probabilities is not None
        self.rows(at.q, q)
        self.rows(at.out, out)
        local = values["attention.local"]
        if local is not None:
            self.rows(at.local_kv, local)
        self.scores(at.probabilities, probabilities, count, len(q))

    def masks(self, at: structures.SegmentData, hidden_mask: Layers, values: Values, count: int, depth: int) -> None:
        """Dropout masks, for segments with `count` scores."""
        mask = values.get("attention.mask")
        if mask is not None:
            self.scores(at.probabilities_mask, mask, count, depth)
        mask = values.get("feedforward.mask")
        if mask is not None:
            self.rows(hidden_mask, mask)

    def move(self, row: int, score: int) -> None:
        """Moves to a segment, by its first row and its first score."""
        for layers, width in self._by_row:
            layers.offset = row * width
        for layers in self._by_score:
            layers.offset = score


def _fill(at: structures.SegmentData, walk: Walk, segment: Segment) -> list[Tensor | None]:
    """Fills in what a segment sees, and returns what must live until the call is over."""
    plan, buffer = walk.plan, walk.buffer
    filled, local = plan.filled(segment), segment.local
    at.length, at.local, at.masked_slots = segment.length, local, plan.slots - filled
    # The kernel leaves out slots that hold nothing, so that the bias of a full window serves where distances are true
    # ones and something is seen.
    bias: Tensor | None
    if buffer.true_distances and filled + local > 0:
        bias, has_keys = buffer.full_bias(segment).contiguous(), None
        if not walk.biases and not local:
            bias = None  # all of it is zero
    else:
        bias, has_keys = buffer.bias(segment)
        bias, has_keys = bias.contiguous(), None if has_keys is None else has_keys.contiguous()
    first = segment.start * buffer.buffer.stride(2) * buffer.buffer.element_size()
    at.keys, at.values = (half.data_ptr() + first for half in buffer.buffer)
    at.bias = None if bias is None else bias.data_ptr()
    at.has_keys = None if has_keys is None else has_keys.data_ptr()
    return [bias, has_keys]


def _row(tensor: Tensor, row: int) -> int:
    """The address of a row of a contiguous tensor."""
    return tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size()


class KernelForwardSteps:
    """Segments walked forward; see `ForwardSteps`."""

    def __init__(self, walk: Walk, states: Tensor | None, values: Values | None) -> None:
        self._walk, self._kernel = walk, Kernel(walk, transposed=False, narrow=states is None)
        self._states, self._values = states, values or {}
        self._scores = [0, *accumulate(walk.layout.score_counts(walk.plan.segments))]
        self._calls: dict[int, tuple[structures.Forward, _Tables, Any]] = {}
        self._slot_bytes = walk.config.dim_head * walk.buffer.buffer.element_size()

    def step(self, segment: Segment, state: Tensor) -> None:
        """Takes a segment from `state[0]` to the top, and puts it into the memory."""
        if segment.length not in self._calls:
            self._calls[segment.length] = self._prepare(segment, state)
        at, moving, _ = self._calls[segment.length]
        moving.move(segment.rows.start, self._scores[segment.index])
        references = _fill(at.segment, self._walk, segment)
        to_slots = self._walk.plan.slots * self._slot_bytes
        at.new_keys, at.new_values = at.segment.keys + to_slots, at.segment.values + to_slots
        self._kernel.forward(ctypes.byref(self._kernel.model), ctypes.byref(at))
        del references

    def _prepare(self, segment: Segment, state: Tensor) -> tuple[structures.Forward, _Tables, Any]:
        """For segments of this length, a structure, what moves with the segment, and what must live as long."""
        layout, x = self._walk.layout, self._walk.x
        at, moving, resting = structures.Forward(), _Tables(), _Tables()
        if self._states is None:
            resting.rows(at.states, state)
        else:
            moving.rows(at.states, self._states)
        values, tables = self._values, moving
        if "attention.q" not in values:
            values, tables = layout.empty(layout.saved, [segment], x), resting
        (count,) = layout.score_counts([segment])
        tables.values(at.segment, values, count)
        middle, hidden = values["feedforward.input"], values["feedforward.hidden"]
        assert middle is not None
        assert hidden is not None
        tables.rows(at.middle, middle)
        tables.rows(at.hidden, hidden)
        moving.masks(at.segment, at.hidden_mask, self._values, count, layout.config.depth)
        rows, dim = segment.length * x.shape[0], x.shape[2]
        widest = max(layout.config.hidden_dim, dim)  # the memory's norm is written there too
        buffers = [x.new_empty(rows, width) for width in (dim, widest, 2 * layout.config.kv_dim)]
        buffers.append(x.new_empty(self._kernel.model.threads, self._walk.plan.slots + segment.local))
        at.normed, at.product, at.kv, at.segment.weights = (tensor.data_ptr() for tensor in buffers)
        return at, moving, (resting, buffers)


class KernelBackwardSteps:
    """Segments walked in reverse time order; see `BackwardSteps`."""

    def __init__(self, walk: Walk, memory: KeyValueGradient, grad_bias: Tensor | None) -> None:
        self._walk, self._memory, self._bias, self._kernel = walk, memory, grad_bias, Kernel(walk, transposed=True)
        rows, config, x = max(walk.plan.row_counts), walk.config, walk.x
        self._workspace = [x.new_empty(rows, width) for width in (config.dim, config.heads * config.dim_head)]
        # By length of segments: weights for each thread, gradients of the scores, and of the biases for each thread.
        self._weights_workspace: dict[int, Tensor] = {}
        self._scores_workspace: dict[int, Tensor] = {}
        self._grad_bias: dict[int, Tensor] = {}

    def begin(self, chunk: Chunk, stored: StoredGradients) -> None:
        self._chunk, self._stored, self._counts = chunk, stored, self._walk.layout.score_counts(chunk.segments)
        self._scores = [0, *accumulate(self._counts)]
        self._calls: dict[int, tuple[structures.Backward, _Tables]] = {}

    def step(self, segment: Segment, place: int, index: int) -> None:
        walk, chunk, stored, memory = self._walk, self._chunk, self._stored, self._memory
        if segment.length not in self._calls:
            self._calls[segment.length] = self._prepare(segment, index)
        at, tables = self._calls[segment.length]
        row = segment.rows.start - chunk.segments[0].rows.start
        tables.move(row, self._scores[index])
        references = _fill(at.segment, walk, segment)
        at.grad_top, at.grad_mixed = _row(stored.grad_tops, row), _row(stored.grad_mixed, row)
        at.grad_kv = _row(stored.grad_kv, row)
        if stored.moments is not None:
            at.mixed = _row(stored.mixed, row)
            at.mixed_mean, at.mixed_rstd = (_row(moment, row) for moment in stored.moments)
        at.total = memory.total[:, :, walk.plan.slots + segment.start :].data_ptr()
        at.total_stride = memory.total.stride(0)
        at.grad_scores_band, at.operands = memory.grad_scores_band.data_ptr(), memory.operands.data_ptr()
        at.place, at.places, at.columns = place, memory.grad_scores_band.shape[2], memory.grad_scores_band.shape[5]
        self._kernel.backward(ctypes.byref(self._kernel.model), ctypes.byref(at))
        del references
        if walk.config.position == "legacy" and self._bias is not None:
            walk.buffer.add_bias_gradient(segment, self._scores_workspace[segment.length], self._bias)

    def end_strip(self, segment: Segment) -> None:
        at, _ = self._calls[segment.length]
        self._kernel.end_strip(ctypes.byref(self._kernel.model), ctypes.byref(at))

    def finish(self) -> None:
        """Adds the gradients of the biases that were gathered by place in the window."""
        plan = self._walk.plan
        one_each = {segment.length: segment for segment in plan.segments}
        for length, grad in self._grad_bias.items():
            assert self._bias is not None
            distance = self._walk.buffer.distance(one_each[length])
            self._bias.index_add_(1, distance.flatten(), grad.sum(0))

    def _prepare(self, segment: Segment, index: int) -> tuple[structures.Backward, _Tables]:
        """For the chunk's segments of this length, a structure, and what moves with the segment."""
        chunk, at, tables, config = self._chunk, structures.Backward(), _Tables(), self._walk.config
        count, length = self._counts[index], segment.length
        columns, threads = self._walk.plan.slots + segment.local, self._kernel.model.threads
        probabilities = chunk.value("attention.probabilities")
        if length not in self._scores_workspace:
            like, groups = probabilities, self._memory.total.shape[1]
            self._scores_workspace[length] = like.new_empty(config.depth, groups, count // config.depth // groups)
            self._weights_workspace[length] = like.new_empty(threads, columns)
            if config.position == "t5":  # distances are the same in all windows
                self._grad_bias[length] = like.new_zeros(threads, config.heads, length * columns)
        tables.fixed(at.grad_scores, self._scores_workspace[length])
        at.segment.weights = self._weights_workspace[length].data_ptr()
        if config.position == "t5":
            at.grad_bias, at.grad_bias_stride = self._grad_bias[length].data_ptr(), config.heads * length * columns
        tables.values(at.segment, chunk.values, count)
        tables.masks(at.segment, at.hidden_mask, chunk.values, count, config.depth)
        tables.rows(at.states, chunk.states[:-1])
        tables.rows(at.middle, chunk.value("feedforward.input"))
        tables.rows(at.hidden, chunk.value("feedforward.hidden"))
        tables.rows(at.grad_states, chunk.grad_states)
        tables.rows(at.grad_middle, chunk.grad_inputs["feedforward"])
        attention, feedforward = sublayers(self._walk)
        norms_a, norms_f = (stage.prepared for stage in self._walk.stages)
        tables.rows(at.mean_a, [each.mean for each in norms_a])
        tables.rows(at.rstd_a, [each.rstd for each in norms_a])
        tables.rows(at.grad_normed_a, [each.grad_input for each in norms_a])
        tables.rows(at.grad_q, attention.grad_q)
        if position_vectors(self._walk) is not None:
            tables.rows(at.grad_products, [columns for (columns,) in attention.grad_columns])
        local = [grad for grad in attention.grad_local if grad is not None]
        if local:
            tables.rows(at.grad_local, local)
        tables.rows(at.mean_f, [each.mean for each in norms_f])
        tables.rows(at.rstd_f, [each.rstd for each in norms_f])
        tables.rows(at.product, feedforward.products)
        tables.rows(at.grad_hidden, feedforward.grad_hidden)
        tables.rows(at.grad_normed_f, [each.grad_input for each in norms_f])
        at.grad_middle_whole, at.grad_out = (tensor.data_ptr() for tensor in self._workspace)
        return at, tables
