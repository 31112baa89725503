"""What is walked through time: the blocks, the mix of their states, and the projection into the memory."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FeedbackConfig
from ..layers import Block
from ..position import build_position

NORM_EPS = 1e-5  # of the memory's norm, as nn.LayerNorm has it


class Stack(nn.Module):
    """The parameters of the recurrence.

    Attributes:
        layers: L blocks.
        to_kv: D to 2*G*E, keys first; the one projection of all layers, and of the memory.
        layer_weight: (L+1,), mixes the embedding and the states of all layers into what the memory stores.
        position: what the distance between query and key adds to a score.
    """

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.to_kv = nn.Linear(config.dim, 2 * config.kv_dim, bias=False)
        self.layer_weight = nn.Parameter(torch.ones(config.depth + 1))
        self.position = build_position(config)

    def mix(self, states: list[Tensor]) -> Tensor:
        """L+1 states (B, S, D) to the one (B, S, D) that goes into the memory (the paper's equation 2)."""
        if self.config.keep_last_hidden:
            mixed = states[-1]
        else:
            mixed = (torch.stack(states) * self.layer_weight.softmax(0)[:, None, None, None]).sum(0)
        return F.layer_norm(mixed, (self.config.dim,), eps=NORM_EPS) if self.config.norm_memory else mixed

    @property
    def blocks(self) -> list[Block]:
        """The layers, as what they are."""
        return cast(list[Block], list(self.layers))
