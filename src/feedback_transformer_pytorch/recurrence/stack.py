"""What is walked through time: the layers, the mix of their states, and the projection into the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FeedbackConfig
from ..layers import (
    Attention,
    ContextKeysValues,
    ContextView,
    CrossAttention,
    FeedForward,
    MemoryView,
    Sublayer,
    scale_last_linears,
)
from ..position import POSITIONS

NORM_EPS = 1e-5  # of the memory's norm without parameters, as nn.LayerNorm has it


class Layer(nn.Module):
    """Attention, attention over the context if there is one, feed-forward."""

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        if config.context_dim is not None:
            self.cross_attention = CrossAttention(config)
        self.feedforward = FeedForward(config)

    def sublayers(self) -> Iterator[tuple[str, Sublayer]]:
        """The names and modules of the sub-layers, in their order."""
        return cast(Iterator[tuple[str, Sublayer]], self.named_children())

    def forward(self, x: Tensor, memory: MemoryView, context: ContextView | None, norm: nn.Module | None) -> Tensor:
        """(B, S, D) to (B, S, D); `norm` is the attention norm of all layers, None where each has its own."""
        for _, sublayer in self.sublayers():
            x = sublayer.residual(x, memory, context, norm)
        return x


class Stack(nn.Module):
    """The parameters of the recurrence.

    Attributes:
        layers: L of them, an nn.ModuleList.
        to_kv: D to 2*G*E, keys first; the one projection of all layers, and of the memory. None where each layer has
            its own.
        norm: the one attention norm of all layers, and of the memory; None where each layer has its own.
        layer_weight: (L+1,), mixes the embedding and the states of all layers into what the memory stores.
        position: what the distance between query and key adds to a score.
    """

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__()
        self.config = config
        layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.layers = cast(Sequence[Layer], layers)
        shares_kv = config.kv == "shared"
        self.to_kv = nn.Linear(config.dim, 2 * config.kv_dim, bias=False) if shares_kv else None
        self.norm = nn.LayerNorm(config.dim) if config.shares_norm else None
        self.layer_weight = nn.Parameter(torch.ones(config.depth + 1))
        self.position = POSITIONS[config.position](
            heads=config.heads, dim_head=config.dim_head, distances=config.mem_len + config.seq_len
        )
        if config.initialisation == "authors":
            scale_last_linears(layers)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def untraced(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function gives for this stack and arguments that are no tensors: a constant, where torch traces."""
        return function(self, *arguments)

    def mix(self, states: list[Tensor]) -> Tensor:
        """L+1 states (B, S, D) to the one (B, S, D) that the memory stores (the paper's equation 2)."""
        stored = self.config.stored
        if stored == "mix":
            return (torch.stack(states) * self.layer_weight.softmax(0)[:, None, None, None]).sum(0)
        return states[-1 if stored == "top" else stored]

    def project(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """What the memory stores (B, n, D) to keys and values (B, n, K*G*E) of all banks."""
        if self.config.memory_norm == "plain":
            stored = F.layer_norm(stored, (self.config.dim,), eps=NORM_EPS)
        pairs = [self._bank(layer, stored).chunk(2, dim=-1) for layer in range(self.config.banks)]
        keys, values = zip(*pairs, strict=True)
        return torch.cat(keys, dim=-1), torch.cat(values, dim=-1)

    def _bank(self, layer: int, stored: Tensor) -> Tensor:
        attention = self.layers[layer].attention
        norm = self.norm if self.norm is not None else attention.norm
        to_kv = self.to_kv if self.to_kv is not None else attention.to_kv
        assert norm is not None
        assert to_kv is not None
        pair: Tensor = to_kv(norm(stored) if self.config.memory_norm == "layer" else stored)
        return pair

    def project_context(self, context: Tensor) -> ContextKeysValues:
        """A context (B, N, C) to the keys and values of all layers."""
        pairs = [layer.cross_attention.project(context) for layer in self.layers]
        return ContextKeysValues(*zip(*pairs, strict=True))

    def first_norm(self, states: Tensor) -> Tensor:
        """States (B, n, D) after the first layer's attention norm."""
        norm = self.norm if self.norm is not None else self.layers[0].attention.norm
        assert norm is not None
        return norm(states)

    def memory_norms(self) -> list[nn.LayerNorm]:
        """The norms that the memory passes through with memory_norm="layer", bank by bank."""
        norms = [self.norm if self.norm is not None else layer.attention.norm for layer in self.layers]
        return [norm for norm in norms[: self.config.banks] if norm is not None]

    def reaches(self) -> list[Tensor]:
        """For each layer the largest distance that any of its heads sees, a number (); none without adaptive spans."""
        spans = [layer.attention.span for layer in self.layers]
        return [span.reach() for span in spans if span is not None]

    def reach(self) -> int:
        """How many memory slots back any head of any layer sees, at most M."""
        reaches = self.reaches()
        return int(torch.stack(reaches).max()) if reaches else self.config.mem_len

    def span_loss(self) -> Tensor:
        """The sum over the layers of their heads' mean spans, in tokens: a number (). Zero without adaptive spans."""
        spans = [layer.attention.span for layer in self.layers]
        losses = [span.loss() for span in spans if span is not None]
        return torch.stack(losses).sum() if losses else self.layer_weight.new_zeros(())
