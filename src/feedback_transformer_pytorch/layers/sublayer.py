"""What all sub-layers have in common: a norm, and a residual connection around them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..config import FeedbackConfig, NormPlacement
from ..position import ScoreTerm


@dataclass(frozen=True)
class MemoryView:
    """What the queries of one segment attend to in one layer. n is the number of memory slots.

    Attributes:
        keys: (B, n, G, E), the memory's.
        values: (B, n, G, E), the memory's.
        to_kv: D to 2*G*E, makes the local keys and values, which follow the memory's; None where a query sees no token
            of its segment.
        distance: (S, n + local) or (B, S, n + local), how far each key is.
        masked: (S, n + local) or (B, S, n + local) bool.
        terms: what distances add to the scores.
        has_keys: (B, 1, 1) bool, False for rows that see nothing at all; None when every row sees something.
        weights: where attention puts what it multiplies values with but for dropout, (B, H, S, n + local), if there
            are keys; None where nobody asks for it.
    """

    keys: Tensor
    values: Tensor
    to_kv: nn.Module | None
    distance: Tensor
    masked: Tensor
    terms: list[ScoreTerm]
    has_keys: Tensor | None
    weights: list[Tensor] | None = None


@dataclass(frozen=True)
class ContextView:
    """The context of one layer.

    Attributes:
        keys, values: (B, N, G, E).
        mask: (B, N) bool, True at what is seen; None when all is.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class Sublayer(nn.Module):
    """A function of states with a norm, and a residual connection around both.

    A subclass defines `forward(x, memory, context)`, from (B, S, D) to (B, S, D), without norm and residual.

    Attributes:
        norm: LayerNorm; None where the caller has one for all layers.
    """

    def __init__(self, config: FeedbackConfig, *, owns_norm: bool = True) -> None:
        super().__init__()
        self.placement: NormPlacement = config.norm
        self.norm = nn.LayerNorm(config.dim) if owns_norm else None

    def residual(
        self, x: Tensor, memory: MemoryView | None, context: ContextView | None, norm: nn.Module | None = None
    ) -> Tensor:
        """(B, S, D) to (B, S, D): x + f(norm(x)), or norm(x + f(x)); `norm` is the one for all layers, if any."""
        norm = self.norm if self.norm is not None else norm
        assert norm is not None
        if self.placement == "pre":
            return x + self(norm(x), memory, context)
        normed: Tensor = norm(x + self(x, memory, context))
        return normed
