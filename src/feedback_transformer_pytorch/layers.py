"""The modules that own the parameters: attention, feed-forward, and the block made of the two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import FeedbackConfig


@dataclass(frozen=True)
class Context:
    """What the queries of one segment may attend to, the same for all layers. n is the number of memory slots.

    Attributes:
        keys: (B, n, G, E), the memory's.
        values: (B, n, G, E), the memory's.
        local: whether the segment's own keys follow the memory's.
        bias: (H or 1, S, n + local*S), or the same for each row (B, H or 1, S, n + local*S), added to the scores; very
            negative where a key is masked.
        vectors: (S, n + local*S, E), whose products with the query are added to the scores; None for none.
        has_keys: (B, 1, 1) bool, False for rows that see nothing at all; None when every row sees something.
    """

    keys: Tensor
    values: Tensor
    local: bool
    bias: Tensor
    vectors: Tensor | None
    has_keys: Tensor | None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to attend to for any row."""
        return not self.local and self.keys.shape[1] == 0


def dropout_mask(like: Tensor, dropout: float) -> Tensor:
    """What dropout multiplies `like` with: 0 where it drops, 1/(1-dropout) where it keeps.

    Every implementation draws its masks here, in the same order and shapes, so that one seed means one function.
    """
    return torch.empty_like(like).bernoulli_(1 - dropout).div_(1 - dropout)


class Attention(nn.Module):
    """Pre-norm attention over the memory and, causally, over the segment itself."""

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__()
        self.heads, self.dim_head, self.dropout = config.heads, config.dim_head, config.attn_dropout
        inner = config.heads * config.dim_head
        self.norm = nn.LayerNorm(config.dim)
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        self.to_out = nn.Linear(inner, config.dim)

    def forward(self, x: Tensor, context: Context, to_kv: nn.Linear) -> Tensor:
        """(B, S, D) to (B, S, D), without the residual.

        `to_kv`, shared by all layers, makes the segment's own keys and values.
        """
        x = self.norm(x)
        k, v = context.keys, context.values
        if context.local:
            local_k, local_v = to_kv(x).unflatten(-1, (2, -1, self.dim_head)).unbind(2)
            k, v = torch.cat([k, local_k], dim=1), torch.cat([v, local_v], dim=1)
        q = self.to_q(x) * self.dim_head**-0.5
        q = q.unflatten(-1, (k.shape[2], -1, self.dim_head))  # (B, S, G, H/G, E)
        scores = torch.einsum("bsgre,bnge->bgrsn", q, k)
        if context.vectors is not None:
            scores = scores + torch.einsum("bsgre,sne->bgrsn", q, context.vectors)
        probabilities = (scores.flatten(1, 2) + context.bias).softmax(-1)
        if self.training and self.dropout:
            probabilities = probabilities * dropout_mask(probabilities, self.dropout)
        out = torch.einsum("bgrsn,bnge->bsgre", probabilities.unflatten(1, (k.shape[2], -1)), v)
        out = self.to_out(out.flatten(2))
        return out if context.has_keys is None else torch.where(context.has_keys, out, 0)


class FeedForward(nn.Module):
    """Pre-norm GEGLU feed-forward (Shazeer 2020), four times the model's width."""

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__()
        self.dropout = config.ff_dropout
        self.norm = nn.LayerNorm(config.dim)
        self.to_hidden = nn.Linear(config.dim, 2 * config.hidden_dim)
        self.to_out = nn.Linear(config.hidden_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D), without the residual."""
        value, gate = self.to_hidden(self.norm(x)).chunk(2, dim=-1)
        hidden = F.gelu(gate) * value
        if self.training and self.dropout:
            hidden = hidden * dropout_mask(hidden, self.dropout)
        return self.to_out(hidden)


class Block(nn.Module):
    """Attention, then feed-forward, each added to what went in."""

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feedforward = FeedForward(config)

    def forward(self, x: Tensor, context: Context, to_kv: nn.Linear) -> Tensor:
        """(B, S, D) to (B, S, D). With nothing to attend to, the attention is skipped whole."""
        if not context.empty:
            x = x + self.attention(x, context, to_kv)
        return x + self.feedforward(x)
