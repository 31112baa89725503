"""Attention over a context that does not change in time, as in the decoder of a translation model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import FeedbackConfig
from .attention import dropout_mask, masked_score
from .sublayer import ContextView, MemoryView, Sublayer


class ContextKeysValues(NamedTuple):
    """What all layers attend to in one context: made once, it serves many calls.

    Attributes:
        keys, values: of each layer (B, N, G, E).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def select(self, rows: Tensor) -> ContextKeysValues:
        """Those of the rows (B',) named by index, in that order."""
        keys, values = (tuple(layer.index_select(0, rows) for layer in part) for part in self)
        return ContextKeysValues(keys, values)


class CrossAttention(Sublayer):
    """Attention of every token over the context, with projections of the layer's own."""

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__(config)
        assert config.context_dim is not None
        self.dim_head, self.dropout = config.dim_head, config.attn_dropout
        inner = config.heads * config.dim_head
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        self.to_kv = nn.Linear(config.context_dim, 2 * config.kv_dim, bias=False)
        self.to_out = nn.Linear(inner, config.dim, bias=config.output_bias)

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The context (B, N, C) to keys and values (B, N, G, E)."""
        keys, values = self.to_kv(context).unflatten(-1, (2, -1, self.dim_head)).unbind(2)
        return keys, values

    def forward(self, x: Tensor, memory: MemoryView, context: ContextView | None = None) -> Tensor:
        """(B, S, D) to (B, S, D); zero for rows that see nothing of their context."""
        assert context is not None
        q = self.to_q(x) * self.dim_head**-0.5
        q = q.unflatten(-1, (context.keys.shape[2], -1, self.dim_head))  # (B, S, G, H/G, E)
        scores = torch.einsum("bsgre,bnge->bgrsn", q, context.keys)
        if context.mask is not None:
            scores = scores.masked_fill(~context.mask[:, None, None, None], masked_score(scores.dtype))
        probabilities = scores.softmax(-1)
        if self.training and self.dropout:
            probabilities = probabilities * dropout_mask(probabilities, self.dropout)
        out = torch.einsum("bgrsn,bnge->bsgre", probabilities, context.values)
        projected: Tensor = self.to_out(out.flatten(2))
        if context.mask is None:
            return projected
        return torch.where(context.mask.any(1)[:, None, None], projected, 0)
