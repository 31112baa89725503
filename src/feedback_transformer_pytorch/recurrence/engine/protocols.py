"""What a backend must offer: the steps of both directions."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from ..layout.plan import Segment
from ..layout.tape import Values
from ..ops.chunk import Chunk
from ..ops.key_value_gradient import KeyValueGradient
from .walk import Walk


class StoredGradients(NamedTuple):
    """What a chunk has besides its sub-layers: what was stored of its Rc rows, and workspace for gradients.

    Attributes:
        mixed: (Rc, D), what was stored.
        normed: (Rc, D), the same after the memory's norm.
        moments: (Rc, 1), that norm's mean and inverse deviation; None without a norm.
        grad_tops: (Rc, D), the gradient of the top states from outside.
        grad_stored: (Rc, D), that of what was stored from outside; None for zero.
        grad_mixed: (Rc, D), written: the whole gradient of what was stored.
        grad_kv: (Rc, K*2*G*E), written: that of its keys and values.
    """

    mixed: Tensor
    normed: Tensor
    moments: tuple[Tensor, Tensor] | None
    grad_tops: Tensor
    grad_stored: Tensor | None
    grad_mixed: Tensor
    grad_kv: Tensor


class ForwardSteps(Protocol):
    """Segments walked forward."""

    def __init__(self, walk: Walk, states: Tensor | None, values: Values | None) -> None:
        """Sets up.

        Args:
            states: (L+1, T*B, D), of all segments; None to save nothing.
            values: what is saved of all segments, dropout masks among it; or dropout masks alone; or None.
        """

    def step(self, segment: Segment, state: Tensor) -> None:
        """Takes a segment from `state[0]` to the top, and puts it into the memory.

        Args:
            state: (L+1, R, D), the segment's part of the states, or workspace: the same for all segments of one length.
        """


class BackwardSteps(Protocol):
    """Segments walked in reverse time order."""

    def __init__(self, walk: Walk, memory: KeyValueGradient, grad_bias: Tensor | None) -> None:
        """Sets up; `grad_bias` (H, M+S) is what the gradients of the biases are added to, None for none."""

    def begin(self, chunk: Chunk, stored: StoredGradients) -> None:
        """Begins a chunk, which the sub-layers have prepared."""

    def step(self, segment: Segment, place: int, index: int) -> None:
        """Walks one segment, number `place` of its strip and `index` of its chunk, down all layers."""

    def end_strip(self, segment: Segment) -> None:
        """Gives the slots before a strip, whose first segment was the last step, the gradients from all its queries."""

    def finish(self) -> None:
        """Does what is left to do after the last step."""
