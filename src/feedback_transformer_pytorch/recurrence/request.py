"""What is asked of a walk, and what it gives: the same for every way to compute it."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor

from ..layers import ContextKeysValues
from ..segments import Visibility

Batched = TypeVar("Batched", Tensor, Tensor | None, Tensor | ContextKeysValues | None)


def select_rows(batched: Batched, rows: Tensor) -> Batched:
    """What there is of the rows (B',) named by index, in that order."""
    if isinstance(batched, ContextKeysValues):
        return batched.select(rows)
    return None if batched is None else batched.index_select(0, rows)


class WalkRequest(NamedTuple):
    """A sequence to walk.

    Attributes:
        x: (B, T, D), embeddings; segments of S tokens, the last may be shorter.
        keys, values: (B, n, K*G*E), of the n <= M slots that precede x, bank by bank.
        visibility: None when every row sees every slot.
        context: (B, N, C), what every token also attends to, or the keys and values that were made of it; None for
            none.
        context_mask: (B, N) bool, True at what is seen of it; None when all is.
        attention, layer_states: whether the result has them.
    """

    x: Tensor
    keys: Tensor
    values: Tensor
    visibility: Visibility | None = None
    context: Tensor | ContextKeysValues | None = None
    context_mask: Tensor | None = None
    attention: bool = False
    layer_states: bool = False

    @property
    def context_tokens(self) -> int:
        """N, or 0 without a context."""
        if isinstance(self.context, ContextKeysValues):
            return self.context.keys[0].shape[1]
        return 0 if self.context is None else self.context.shape[1]


class Walked(NamedTuple):
    """The result of a walk.

    Attributes:
        states: (B, T, D), of the top layer.
        keys, values: (B, n + T, K*G*E), of the carried slots and then of all tokens. None where states are carried.
        stored: (B, T, D), the states that the memory stored. None where keys are carried.
        attention: (B, L, H, T, k + T), what values are multiplied with, by the place of the key: the newest k <= n
            carried slots, and then the tokens; older slots are not seen. Without gradients. None unless asked for.
        layer_states: (L+1, B, T, D), of the embeddings and all layers. Without gradients. None unless asked for.
    """

    states: Tensor
    keys: Tensor | None
    values: Tensor | None
    stored: Tensor | None
    attention: Tensor | None = None
    layer_states: Tensor | None = None
