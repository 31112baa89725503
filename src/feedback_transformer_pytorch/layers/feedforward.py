"""The feed-forward of a layer."""

from __future__ import annotations

from torch import Tensor, nn

from ..activation import ACTIVATIONS
from ..config import FeedbackConfig
from .attention import dropout_mask
from .sublayer import ContextView, MemoryView, Sublayer


class FeedForward(Sublayer):
    """Linear, activation, linear."""

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__(config)
        self.dropout = config.ff_dropout
        self.activation = ACTIVATIONS[config.feedforward]
        self.to_hidden = nn.Linear(config.dim, self.activation.parts * config.hidden_dim)
        self.to_out = nn.Linear(config.hidden_dim, config.dim)

    def forward(self, x: Tensor, memory: MemoryView | None = None, context: ContextView | None = None) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        hidden = self.activation(self.to_hidden(x))
        if self.training and self.dropout:
            hidden = hidden * dropout_mask(hidden, self.dropout)
        out: Tensor = self.to_out(hidden)
        return out
