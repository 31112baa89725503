"""The backward walk: the steps' input gradients in reverse time order, all else in bulk, chunk by chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout.plan import Segment
from ..layout.tape import Values
from ..layout.workspace import Workspace
from ..ops.chunk import Chunk
from ..ops.key_value_gradient import KeyValueGradient
from ..request import Walked
from .protocols import BackwardSteps, StoredGradients
from .walk import Walk


def backward(
    walk: Walk, make_steps: type[BackwardSteps], grads: Walked, states: Tensor, values: Values, recompute: bool
) -> dict[str, Tensor]:
    """Walks backward: the gradients of all inputs that need one, by name.

    Args:
        make_steps: what walks the steps.
        grads: of the results of `forward`; None for zero.
        states, values: what `forward` wrote.
        recompute: whether `values` holds dropout masks alone, and the rest must be recomputed.
    """
    return _BackwardWalk(walk, make_steps, grads, states, values, recompute).run()


class _BackwardWalk:
    def __init__(
        self,
        walk: Walk,
        make_steps: type[BackwardSteps],
        grads: Walked,
        states: Tensor,
        values: Values,
        recompute: bool,
    ) -> None:
        self.walk, self.layout, self.plan = walk, walk.layout, walk.plan
        self.states, self.values, self.recompute = states, values, recompute
        total = walk.buffer.gradient(grads.keys, grads.values, walk.wide)
        self.memory = KeyValueGradient(total, walk.plan.slots, walk.config.banks)
        self.grad_bias = torch.zeros_like(walk.by_distance) if walk.biases else None
        self.workspace = Workspace()
        self.grad_mix = None if walk.mix_weight is None else torch.zeros_like(walk.mix_weight)
        tops = grads.states
        self.grad_tops = torch.zeros_like(states[0]) if tops is None else self.plan.to_rows(tops).contiguous()
        self.grad_stored = None if grads.stored is None else self.plan.to_rows(grads.stored)
        self.steps = make_steps(walk, self.memory, self.grad_bias)

    def run(self) -> dict[str, Tensor]:
        walk, plan = self.walk, self.plan
        grad_x = torch.empty_like(self.states[0])
        for strips in reversed(plan.chunks):
            chunk = self._chunk(strips)
            if self.recompute:
                self._recompute(chunk)
            stored = self._stored(chunk)
            for stage in walk.stages:
                stage.prepare(chunk)
            self.steps.begin(chunk, stored)
            self._walk_strips(strips)
            self._accumulate(chunk, stored)
            grad_x[chunk.segments[0].rows.start : chunk.segments[-1].rows.stop] = chunk.grad_states[0]
        self.steps.finish()
        grad_keys, grad_values = walk.buffer.carried_gradient(self.memory.total, walk.keys.dtype)
        found = {"x": plan.from_rows(grad_x), "keys": grad_keys, "values": grad_values}
        for stage in walk.stages:
            found |= stage.ops.input_gradients()
        return found | walk.gradients(self.grad_bias, self.grad_mix)

    def _chunk(self, strips: list[list[Segment]]) -> Chunk:
        layout, get = self.layout, self.workspace.get
        segments = [segment for strip in strips for segment in strip]
        rows = slice(segments[0].rows.start, segments[-1].rows.stop)
        states = self.states[:, rows]
        values = layout.part(self.values, segments, self.plan.segments)
        if self.recompute:
            values = layout.empty(layout.saved, segments, states) | values
        names = [stage.name for stage in self.walk.stages]
        shape = (self.walk.config.depth, states.shape[1], states.shape[2])
        return Chunk(
            layout=layout,
            strips=strips,
            counts=[segment.rows.stop - segment.rows.start for segment in segments],
            names=names,
            has_keys=self.walk.buffer.has_keys(segments),
            states=states,
            values=values,
            grad_states=get("states", tuple(states.shape), states),
            grad_inputs={name: get(f"inputs.{name}", shape, states) for name in names[1:]},
        )

    def _stored(self, chunk: Chunk) -> StoredGradients:
        walk, get, states = self.walk, self.workspace.get, chunk.states
        products = self.layout.precision.products
        mixed = walk.mix(states)
        normed, *moments = (mixed,) if walk.memory_norm is None else walk.memory_norm.recompute(mixed)
        rows = slice(chunk.segments[0].rows.start, chunk.segments[-1].rows.stop)
        return StoredGradients(
            mixed=mixed,
            normed=normed.to(products),
            moments=(moments[0], moments[1]) if moments else None,
            grad_tops=self.grad_tops[rows],
            grad_stored=None if self.grad_stored is None else self.grad_stored[rows],
            grad_mixed=get("mixed", tuple(states.shape[1:]), states),
            grad_kv=get("kv", (states.shape[1], 2 * walk.config.memory_dim), states, products),
        )

    def _recompute(self, chunk: Chunk) -> None:
        """Recomputes a chunk's values from its states: products in bulk, attention step by step."""
        walk, windows = self.walk, self.walk.buffer.windows(chunk.segments)
        for layer in range(walk.config.depth):
            for stage, after in zip(walk.stages, [*chunk.names[1:], None], strict=True):
                out = None if after is None else chunk.value(f"{after}.input")[layer]
                stage.recompute(layer, chunk, windows, out)

    def _walk_strips(self, strips: list[list[Segment]]) -> None:
        walk, index = self.walk, sum(map(len, strips))
        queries = walk.config.heads // walk.config.groups
        like = walk.x.new_empty(0, dtype=self.layout.precision.attention)
        for strip in reversed(strips):
            length = strip[0].length
            self.memory.begin(strip[0].start, len(strip), length, walk.config.depth, queries * length, like)
            for place in reversed(range(len(strip))):
                index -= 1
                self.steps.step(strip[place], place, index)
            self.steps.end_strip(strip[0])

    def _accumulate(self, chunk: Chunk, stored: StoredGradients) -> None:
        """Adds a chunk's parameter gradients."""
        for stage in reversed(self.walk.stages):
            stage.accumulate(chunk)
        self.walk.project.accumulate(stored.grad_kv, stored.normed)
        if self.grad_mix is not None:
            # What the layers have in common cancels in the softmax: so `sum`, which adds in pairs, and no dot product.
            grad = stored.grad_mixed
            product = self.workspace.get("mix", tuple(grad.shape), grad)
            sums = [torch.mul(state, grad, out=product).sum() for state in chunk.states]
            self.grad_mix.add_(torch.stack(sums))
