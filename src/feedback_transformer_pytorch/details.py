"""What a call of the model returns that was asked for attention or for the states of all layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .memory import AnyMemory
from .recurrence import Walked
from .segments import Alignment


class Details(NamedTuple):
    """The result of a call with `return_attention=True` or `return_states=True`.

    Attention and states have no gradients. At padding they are zero.

    Attributes:
        output: what the call returns otherwise: states (B, T, D) of a decoder, logits (B, T, V) of a model.
        memory: the memory after x; None unless it was asked for.
        attention: (B, L, H, T, n + T), how much each head of each token takes from each place: first the n carried
            slots, oldest first, then the T tokens of x. It is what values are multiplied with, after an adaptive span
            and before dropout. n is at most M, and M where the memory starts with zero states. What a token does not
            see is zero. Each row sums to 1, with three exceptions: it is zero where a token sees nothing; what a narrow
            adaptive span leaves may be less; and zero states that stand before a document within x have no place, so
            that what is missing went to them. Its size grows with T * (n + T): read a long text in several calls. None
            unless it was asked for.
        states: (L+1, B, T, D), the embeddings and the output of each layer, before the norm that a decoder puts after
            the last one. None unless they were asked for.
    """

    output: Tensor
    memory: AnyMemory | None
    attention: Tensor | None
    states: Tensor | None

    @classmethod
    def of(
        cls, output: Tensor, memory: AnyMemory | None, walked: Walked, slots: int, alignment: Alignment | None
    ) -> Details:
        """The details of a walk.

        Args:
            slots: n, the number of carried slots.
            alignment: where the tokens stood; None where they stood.
        """
        attention, states = walked.attention, walked.layer_states
        if attention is not None:
            older = slots + walked.states.shape[1] - attention.shape[-1]
            attention = F.pad(attention, (older, 0))
            attention = attention if alignment is None else alignment.gather_attention(attention)
        if states is not None and alignment is not None:
            states = torch.stack([alignment.gather(layer) for layer in states])
        return cls(output, memory, attention, states)
