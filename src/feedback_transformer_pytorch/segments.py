"""Padding and documents: rows are rearranged so that every document starts a segment.

The recurrence then needs to know two numbers a row and segment, and padding costs it nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Visibility:
    """What the queries of each segment may see. N is the number of segments.

    Attributes:
        context_length: (B, N), how many tokens of the document, memory included, stand before the segment; of these the
            newest M are seen.
        single_token: (B, N) bool, True where the row has at most one token in the segment, which then has no local
            keys.
    """

    context_length: Tensor
    single_token: Tensor

    def memory_count(self, segment: int, slots: int) -> Tensor:
        """(B,): how many of the newest `slots` memory slots a row sees in this segment."""
        return self.context_length[:, segment].clamp(max=slots)


@dataclass(frozen=True)
class Alignment:
    """Where tokens stand once padding is taken out and every document starts a segment.

    Attributes:
        place: (B, T), the aligned place of each token; `length` for padding.
        length: T', the aligned length.
        ends: (B,), one past the aligned place of each row's last token.
        context_length_end: (B,), how many tokens, memory included, the next token of the row could see.
        visibility: what each aligned segment sees.
    """

    place: Tensor
    length: int
    ends: Tensor
    context_length_end: Tensor
    visibility: Visibility

    def scatter(self, x: Tensor) -> Tensor:
        """(B, T, D) to aligned (B, T', D), zero where no token stands."""
        aligned = x.new_zeros(x.shape[0], self.length + 1, x.shape[2])
        return aligned.scatter(1, self.place[..., None].expand_as(x), x)[:, : self.length]

    def gather(self, aligned: Tensor) -> Tensor:
        """Aligned (B, T', D) back to (B, T, D), zero at padding."""
        width = aligned.shape[2]
        padded = torch.cat([aligned, aligned.new_zeros(aligned.shape[0], 1, width)], dim=1)
        return padded.gather(1, self.place[..., None].expand(-1, -1, width))

    def gather_attention(self, aligned: Tensor) -> Tensor:
        """Aligned (B, L, H, T', n + T') to (B, L, H, T, n + T), with n slots before the keys; zero at padding."""
        slots = torch.arange(aligned.shape[-1] - self.length, device=aligned.device)
        padded = F.pad(aligned, (0, 1, 0, 1))
        return torch.stack(
            [
                row[:, :, place][..., torch.cat([slots, len(slots) + place])]
                for row, place in zip(padded, self.place, strict=True)
            ]
        )


@torch.compiler.disable(reason="how many segments there are depends on what mask and reset say")  # type: ignore[untyped-decorator]
def align(mask: Tensor, reset: Tensor, carried: Tensor, seq_len: int) -> Alignment:
    """Aligns a batch.

    Args:
        mask: (B, T) bool, True at a real token.
        reset: (B, T) bool, True where a new document starts; at padding it counts for the next token.
        carried: (B,), how many slots of the carried memory each row sees.
        seq_len: S.
    """
    document = reset.long().cumsum(1)
    counts = mask.new_zeros(mask.shape[0], int(document.max()) + 1, dtype=torch.long)
    counts.scatter_add_(1, document, mask.long())
    padded = (counts + seq_len - 1) // seq_len * seq_len
    starts = padded.cumsum(1) - padded
    rank = mask.long().cumsum(1) - 1 - (counts.cumsum(1) - counts).gather(1, document)
    place = starts.gather(1, document) + rank
    ends = torch.where(mask, place + 1, 0).amax(1)
    # A batch of nothing but padding still runs one step, which nobody sees.
    length = max(1, int(ends.max()))
    place = torch.where(mask, place, length)

    first = torch.where(document == 0, -carried[:, None], starts.gather(1, document))
    segments = -(-length // seq_len)
    whole = segments * seq_len
    first_at = place.new_zeros(place.shape[0], whole + 1).scatter(1, place.clamp(max=whole), first)
    token_at = mask.new_zeros(mask.shape[0], whole + 1, dtype=torch.long).scatter_add(1, place, mask.long())
    visibility = Visibility(
        context_length=torch.arange(0, whole, seq_len, device=place.device) - first_at[:, :whole:seq_len],
        single_token=token_at[:, :whole].unflatten(1, (segments, seq_len)).sum(2) <= 1,
    )

    last = document[:, -1:]
    untouched = torch.where(last == 0, -carried[:, None], ends[:, None])
    first_at_end = torch.where((counts.gather(1, last) == 0) | (last == 0), untouched, starts.gather(1, last))
    return Alignment(place, length, ends, ends - first_at_end[:, 0], visibility)
