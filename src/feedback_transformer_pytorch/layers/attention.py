"""Attention over the memory and, causally, over the segment itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import FeedbackConfig
from .span import AdaptiveSpan
from .sublayer import ContextView, MemoryView, Sublayer


def masked_score(dtype: torch.dtype) -> float:
    """The score of a masked key: half the lowest number, so that something can be added to it."""
    return torch.finfo(dtype).min / 2


def dropout_mask(like: Tensor, dropout: float) -> Tensor:
    """What dropout multiplies `like` with: 0 where it drops, 1/(1-dropout) where it keeps.

    Every implementation draws its masks here, in the same order and shapes, so that one seed means one function.
    """
    return torch.empty_like(like).bernoulli_(1 - dropout).div_(1 - dropout)


class Attention(Sublayer):
    """Attention of a segment's queries over the memory and, if it has more than one token, over the segment.

    Attributes:
        to_kv: D to 2*G*E, keys first; None where one projection serves all layers.
    """

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__(config, owns_norm=not config.shares_norm)
        self.dim_head, self.dropout = config.dim_head, config.attn_dropout
        inner = config.heads * config.dim_head
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        shares_kv = config.kv == "shared"
        self.to_kv = None if shares_kv else nn.Linear(config.dim, 2 * config.kv_dim, bias=False)
        self.to_out = nn.Linear(inner, config.dim, bias=config.output_bias)
        self.span = AdaptiveSpan(config) if config.adaptive_span else None

    def forward(self, x: Tensor, memory: MemoryView, context: ContextView | None = None) -> Tensor:
        """(B, S, D) to (B, S, D); zero for rows that see nothing."""
        k, v = memory.keys, memory.values
        if memory.to_kv is not None:
            local_k, local_v = memory.to_kv(x).unflatten(-1, (2, -1, self.dim_head)).unbind(2)
            k, v = torch.cat([k, local_k], dim=1), torch.cat([v, local_v], dim=1)
        if k.shape[1] == 0:
            return torch.zeros_like(x)
        q = self.to_q(x) * self.dim_head**-0.5
        q = q.unflatten(-1, (k.shape[2], -1, self.dim_head))  # (B, S, G, H/G, E)
        scores = torch.einsum("bsgre,bnge->bgrsn", q, k)
        for term in memory.terms:
            scores = scores + term.scores(q, memory.distance)
        masked = memory.masked if self.span is None else memory.masked | (memory.distance > self.span.reach())
        masked = masked if masked.ndim == 2 else masked[:, None, None]
        probabilities = scores.masked_fill(masked, masked_score(scores.dtype)).softmax(-1).flatten(1, 2)
        if self.span is not None:
            probabilities = self.span(probabilities, memory.distance)
        if memory.weights is not None:
            memory.weights.append(probabilities)
        if self.training and self.dropout:
            probabilities = probabilities * dropout_mask(probabilities, self.dropout)
        out = torch.einsum("bgrsn,bnge->bsgre", probabilities.unflatten(1, (k.shape[2], -1)), v)
        out = self.to_out(out.flatten(2))
        return out if memory.has_keys is None else torch.where(memory.has_keys, out, 0)
