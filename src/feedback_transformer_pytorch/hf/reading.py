"""A decoder reads a text in pieces, so that no state depends on how the text is split or padded.

A token's state depends on what precedes it alone, with one exception in the model's definition: a token that is the
only one of its segment has no local key. In a longer text the token would have one. So a token that is read last is
read together with another one that it does not see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..decoder import FeedbackDecoder
from ..memory import AnyMemory
from ..recurrence import select_rows


@dataclass(frozen=True, eq=False)
class Progress:
    """What a decoder keeps of the text that it has read.

    Attributes:
        memory: of each row's whole segments; None before the first one.
        tail: (B, P < S, D), the embeddings of the tokens after them; None if no row has any.
        tail_mask: (B, P) bool, True at a real token; None if all are.
    """

    memory: AnyMemory | None = None
    tail: Tensor | None = None
    tail_mask: Tensor | None = None

    @property
    def requires_grad(self) -> bool:
        """Whether gradients may flow back into the memory."""
        return self.memory is not None and any(tensor.requires_grad for tensor in self.memory.tensors)

    def select(self, rows: Tensor) -> Progress:
        """That of the rows (B',) named by index, in that order."""
        memory = None if self.memory is None else self.memory.select(rows)
        return Progress(memory, select_rows(self.tail, rows), select_rows(self.tail_mask, rows))

    def detach(self) -> Progress:
        """The same, detached from the graph that made it."""
        memory = None if self.memory is None else self.memory.detach()
        return Progress(memory, None if self.tail is None else self.tail.detach(), self.tail_mask)


def read_whole(decoder: FeedbackDecoder, x: Tensor, mask: Tensor | None) -> Tensor:
    """A text from its start, in one walk, when nothing will follow.

    Args:
        x: (B, T, D), embeddings.
        mask: (B, T) bool, True at a real token; None if all are.

    Returns:
        states (B, T, D); at padding they mean nothing.
    """
    seq_len = decoder.config.seq_len
    if seq_len == 1 or (mask is None and x.shape[1] % seq_len != 1):
        return decoder(x, mask=mask)
    longer, mask = _with_another(x, mask)
    return decoder(longer, mask=mask)[:, : x.shape[1]]


def read_documents(decoder: FeedbackDecoder, x: Tensor, starts: Tensor) -> Tensor:
    """Rows of several documents each, which are read side by side, each from its start.

    Those whose lengths have the same power of two above them are read together, so padding at most doubles the tokens.

    Args:
        x: (B, T, D), embeddings.
        starts: (B, T) bool, True where a document starts, as it does at the start of each row.

    Returns:
        states (B, T, D).
    """
    first = starts.flatten().nonzero()[:, 0]
    document = starts.flatten().cumsum(0) - 1
    place = torch.arange(starts.numel(), device=x.device) - first[document]
    lengths = torch.diff(first, append=first.new_tensor([starts.numel()]))
    size = lengths.log2().ceil()[document]
    read, parts = [], []
    for one in size.unique():
        tokens = (size == one).nonzero()[:, 0]
        read.append(tokens)
        parts.append(_read_side_by_side(decoder, x.flatten(0, 1)[tokens], document[tokens], place[tokens]))
    return torch.cat(parts)[torch.cat(read).argsort()].view_as(x)


def _read_side_by_side(decoder: FeedbackDecoder, x: Tensor, document: Tensor, place: Tensor) -> Tensor:
    """States (N, D) of documents.

    Args:
        x: (N, D), embeddings.
        document: (N,), a number for each document; its tokens follow each other.
        place: (N,), of each token in its document.
    """
    _, row, lengths = document.unique_consecutive(return_inverse=True, return_counts=True)
    longest = int(lengths.max())
    at = row * longest + place
    apart = x.new_zeros(len(lengths) * longest, x.shape[1]).index_copy(0, at, x).unflatten(0, (-1, longest))
    mask = torch.arange(longest, device=x.device) < lengths[:, None]
    return read_whole(decoder, apart, None if bool(mask.all()) else mask).flatten(0, 1)[at]


def read_on(
    decoder: FeedbackDecoder, x: Tensor, progress: Progress, mask: Tensor | None = None
) -> tuple[Tensor, Progress]:
    """Reads on after what was read.

    Args:
        x: (B, T, D), embeddings.
        mask: (B, T) bool, True at a real token; None if all are.

    Returns:
        states (B, T, D), which mean nothing at padding, and the progress after x.
    """
    length = x.shape[1]
    if progress.tail is not None:
        mask = join_masks(progress.tail, progress.tail_mask, x, mask)
        x = torch.cat([progress.tail, x], dim=1)
    if mask is None:
        states, after = _read_even(decoder, x, progress.memory)
    else:
        states, after = _read_uneven(decoder, x, progress.memory, mask)
    return states[:, -length:], after


def _read_even(decoder: FeedbackDecoder, x: Tensor, memory: AnyMemory | None) -> tuple[Tensor, Progress]:
    """Rows without padding: a walk over the whole segments, and one over the tail."""
    whole = x.shape[1] // decoder.config.seq_len * decoder.config.seq_len
    parts = []
    if whole:
        states, memory = decoder(x[:, :whole], memory, return_memory=True)
        parts.append(states)
    if whole == x.shape[1]:
        return parts[0], Progress(memory)
    tail = x[:, whole:].clone()  # a view would keep all of x alive
    parts.append(_read_tail(decoder, tail, memory, None))
    return torch.cat(parts, dim=1), Progress(memory, tail)


def _read_uneven(
    decoder: FeedbackDecoder, x: Tensor, memory: AnyMemory | None, mask: Tensor
) -> tuple[Tensor, Progress]:
    """The same where rows have different numbers of tokens, and so their segments end at different places."""
    counts = mask.sum(1)
    whole = counts // decoder.config.seq_len * decoder.config.seq_len
    rank = mask.long().cumsum(1) - 1
    in_tail = mask & (rank >= whole[:, None])
    before = mask & ~in_tail
    states = torch.zeros_like(x)
    if before.any():
        states, memory = decoder(x, memory, return_memory=True, mask=before)
    length = int((counts - whole).max())
    if not length:
        return states, Progress(memory)
    place = torch.where(in_tail, rank - whole[:, None], length)[..., None].expand_as(x)
    tail = x.new_zeros(x.shape[0], length + 1, x.shape[2]).scatter(1, place, x)[:, :length].clone()
    tail_mask = torch.arange(length, device=x.device) < (counts - whole)[:, None]
    tail_states = _read_tail(decoder, tail, memory, tail_mask)
    nothing = tail_states.new_zeros(x.shape[0], 1, x.shape[2])
    placed = torch.cat([tail_states, nothing], dim=1).gather(1, place)
    return torch.where(in_tail[..., None], placed, states), Progress(memory, tail, tail_mask)


def _read_tail(decoder: FeedbackDecoder, tail: Tensor, memory: AnyMemory | None, mask: Tensor | None) -> Tensor:
    """States (B, P, D) of the beginning (B, 1 <= P < S, D) of a segment."""
    if mask is None and tail.shape[1] > 1:
        return decoder(tail, memory)
    x, mask = _with_another(tail, mask)
    return decoder(x, memory, mask=mask)[:, : tail.shape[1]]


def _with_another(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One more real token at the end of each row."""
    if mask is not None:
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return torch.cat([x, x[:, :1]], dim=1), mask


def join_masks(x: Tensor, x_mask: Tensor | None, y: Tensor, y_mask: Tensor | None) -> Tensor | None:
    """The mask of x and then y, each (B, n, D); None stands for one that is True throughout."""
    if x_mask is None and y_mask is None:
        return None
    pairs = ((x, x_mask), (y, y_mask))
    return torch.cat([t.new_ones(t.shape[:2], dtype=torch.bool) if m is None else m for t, m in pairs], dim=1)
