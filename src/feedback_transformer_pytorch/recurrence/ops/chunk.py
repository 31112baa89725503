"""A part of the sequence in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..layout.plan import Segment
from ..layout.tape import Layout, Step, Values


@dataclass(frozen=True)
class Chunk:
    """What some segments saved or recomputed, and workspace for the gradients of their Rc rows.

    Attributes:
        layout: that of the walk.
        strips: the segments, strip by strip; all segments of a strip are equally long.
        counts: rows of each segment.
        names: of the sub-layers of a layer, in their order.
        has_keys: (Rc, 1), False for rows that see nothing at all; None when every row sees something.
        states: (L+1, Rc, D), the inputs of the layers and the top.
        values: what the sub-layers saved, dropout masks among it.
        grad_states: (L+1, Rc, D).
        grad_inputs: by sub-layer but the first (L, Rc, D), the gradients of their inputs.
    """

    layout: Layout
    strips: list[list[Segment]]
    counts: list[int]
    names: list[str]
    has_keys: Tensor | None
    states: Tensor
    values: Values
    grad_states: Tensor
    grad_inputs: dict[str, Tensor]

    @cached_property
    def segments(self) -> list[Segment]:
        """All segments in their order."""
        return [segment for strip in self.strips for segment in strip]

    @cached_property
    def steps(self) -> list[list[Step]]:
        """For each segment, for each layer, its views of `values`."""
        return self.layout.steps(self.segments, self.values)

    def input(self, name: str, layer: int) -> Tensor:
        """(Rc, D), what went into a sub-layer."""
        if name == self.names[0]:
            return self.states[layer]
        return self.value(f"{name}.input")[layer]

    def grad_input(self, name: str, layer: int) -> Tensor:
        """(Rc, D), the gradient of what went into a sub-layer."""
        return self.grad_states[layer] if name == self.names[0] else self.grad_inputs[name][layer]

    def grad_output(self, name: str, layer: int) -> Tensor:
        """(Rc, D), the gradient of what came out of a sub-layer and its residual."""
        after = self.names.index(name) + 1
        return self.grad_states[layer + 1] if after == len(self.names) else self.grad_inputs[self.names[after]][layer]

    def value(self, name: str) -> Tensor:
        """A value that is there."""
        value = self.values[name]
        assert value is not None
        return value
