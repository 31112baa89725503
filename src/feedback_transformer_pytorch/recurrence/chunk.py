"""A part of the sequence on the way back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .plan import Segment
from .tape import Masks, Values


class Chunk(NamedTuple):
    """What some segments kept or recomputed, and workspace for the gradients of their Rc rows."""

    segments: list[Segment]
    states: Tensor  # (L+1, Rc, D)
    mixed: Tensor  # (Rc, D), before the memory's norm
    stored: Tensor  # (Rc, D), after it
    moments: tuple[Tensor, Tensor] | None  # (Rc, 1), that norm's mean and inverse deviation
    values: Values
    masks: Masks
    grad_tops: Tensor  # (Rc, D)
    grad_states: Tensor  # (L+1, Rc, D)
    grad_middles: Tensor  # (L, Rc, D)
    grad_mixed: Tensor  # (Rc, D)
    grad_kv: Tensor  # (Rc, 2*G*E)
