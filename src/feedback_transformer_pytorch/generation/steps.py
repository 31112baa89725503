"""A decoder that reads on behind a memory, a few tokens at a time, with what a walk needs set up once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..decoder import FeedbackDecoder
from ..layers import ContextKeysValues
from ..memory import Memory
from ..recurrence import Incremental, WalkRequest, computes_like, is_called_plainly


def is_plain_decoder(decoder: FeedbackDecoder) -> bool:
    """Whether a walk and then the decoder's norm are the decoder."""
    return computes_like(decoder, FeedbackDecoder) and is_called_plainly(decoder)


def start_walk(
    decoder: FeedbackDecoder,
    x: Tensor,
    memory: Any,
    keys_values: Memory | None = None,
    context: ContextKeysValues | None = None,
    context_mask: Tensor | None = None,
) -> Incremental | None:
    """A walk that goes on behind a memory, for embeddings like x (B, T, D); None where it does not apply."""
    if decoder.implementation == "stepwise":
        return None
    stack, past = decoder.stack, decoder.start(memory, x)
    request = WalkRequest(x, *decoder.keys_values(past), context=context, context_mask=context_mask)
    return Incremental(stack, request, past, keys_values) if Incremental.applies(stack, request, past) else None


def walk_segments(walk: Incremental, x: Tensor, seq_len: int) -> Iterator[Tensor]:
    """Walks over x (B, T, D) from the start of a segment, and yields each segment's top states (B, S, D), fewer at the
    end. Whole segments enter the memory."""
    for segment in x.split(seq_len, dim=1):
        if segment.shape[1] == seq_len:
            yield walk.step(segment)
        else:
            yield walk.peek(with_neighbour(segment))[:, : segment.shape[1]]


def with_neighbour(segment: Tensor) -> Tensor:
    """The segment; a single token twice. By itself a token has no local key, which it has inside a longer segment, and
    it does not see its neighbour."""
    return segment if segment.shape[1] > 1 else torch.cat([segment, segment], dim=1)
