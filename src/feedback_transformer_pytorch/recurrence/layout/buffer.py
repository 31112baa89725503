"""The memory buffer of a walk, and the window of it that each segment sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...layers.attention import masked_score
from ...position import POSITIONS
from ...segments import Visibility
from ..mask import AttentionMask, attention_mask
from .plan import Segment
from .tape import Layout


class Window(NamedTuple):
    """What a segment's queries attend to.

    Attributes:
        keys, values: of each bank (BG, n, E), views of the memory; keys_t, values_t: the same transposed, (BG, E, n).
        bias: (BG, Q, n + local), very negative where a key is masked.
        distance: (Q, n + local) or (BG, Q, n + local), how far each key is; None where nobody asks.
        length: the segment's, where all windows of that length have the same distances; None otherwise.
        has_keys: (R, 1), False for rows that see nothing at all; None when every row sees something.
        blank: (BG, n) bool, True at slots that stand for zero states; None for none.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    keys_t: Sequence[Tensor]
    values_t: Sequence[Tensor]
    bias: Tensor
    distance: Tensor | None
    length: int | None
    has_keys: Tensor | None
    blank: Tensor | None


class MemoryBuffer:
    """Keys and values of the carried memory and of all tokens in one buffer; a window is a view of it.

    Attributes:
        buffer: (2, K*BG, n + T, E). The carried memory ends at slot n, and slots before it are masked; token t goes to
            slot n + t, so a segment that starts at token t sees slots t to t + n.
        stored: (T*B, D), the states that were stored, time-major; None unless they are asked for.
        by_distance: (H or 1, M+S), the bias of each distance.
    """

    def __init__(
        self,
        layout: Layout,
        buffer: Tensor,
        stored: Tensor | None,
        by_distance: Tensor,
        visibility: Visibility | None,
        needs_distance: bool,
        zero: Tensor | None,
    ) -> None:
        """Sets up.

        Args:
            needs_distance: whether windows tell how far their keys are.
            zero: (K*2*G*E,), keys and values of a zero state; None where they are zero.
        """
        self._layout, self.buffer, self.stored = layout, buffer, stored
        self.by_distance, self._visibility, self._needs_distance = by_distance, visibility, needs_distance
        self._zero = zero
        self._counts_memory = POSITIONS[layout.config.position].counts_memory
        # What segments of one length see of a full window. At most S lengths occur, so this stays small.
        self._full_masks: dict[int, AttentionMask] = {}
        self._full_biases: dict[int, Tensor] = {}
        self._distances: dict[int, Tensor] = {}
        self._latest: tuple[Segment, AttentionMask] | None = None  # several callers ask for the mask of one segment

    @staticmethod
    def fresh(layout: Layout, keys: Tensor, values: Tensor) -> Tensor:
        """The buffer with the carried keys and values (B, carried, K*G*E) in place, and those of tokens behind them, if
        any are given."""
        plan, config, precision = layout.plan, layout.config, layout.precision
        shape = (2, config.banks * layout.groups, plan.slots + plan.time, config.dim_head)
        buffer = keys.new_empty(shape, dtype=precision.stored)
        buffer[:, :, : plan.slots - plan.carried] = 0
        for place, carried in zip(buffer, (keys, values), strict=True):
            heads = carried.to(precision.memory).unflatten(-1, (config.banks, -1, config.dim_head))
            first = plan.slots - plan.carried
            slots = place[:, first : first + carried.shape[1]]
            slots.unflatten(0, (config.banks, plan.batch, -1)).copy_(heads.permute(2, 0, 3, 1, 4))
        return buffer

    def write(self, segment: Segment, rows: Tensor) -> None:
        """Puts keys and values (B*s, K*2*G*E) of a segment into its slots."""
        self.slots(segment).copy_(self.as_slots(segment, rows.to(self._layout.precision.memory)))

    def slots(self, segment: Segment) -> Tensor:
        """(2, K, B, G, s, E): the slots of a segment."""
        first = self._layout.plan.slots + segment.start
        slots = self.buffer[:, :, first : first + segment.length]
        return slots.unflatten(1, (self._layout.config.banks, self._layout.plan.batch, -1))

    def as_slots(self, segment: Segment, rows: Tensor) -> Tensor:
        """Rows (B*s, K*2*G*E) seen as (2, K, B, G, s, E)."""
        config, batch = self._layout.config, self._layout.plan.batch
        parts = rows.view(batch, segment.length, config.banks, 2, -1, config.dim_head)
        return parts.permute(3, 2, 0, 4, 1, 5)

    def window(self, segment: Segment) -> Window:
        """What a segment sees."""
        return self.windows([segment])[0]

    def windows(self, segments: Sequence[Segment]) -> list[Window]:
        """What consecutive segments see."""
        plan, banks, first = self._layout.plan, self._layout.config.banks, segments[0].start
        seen = self.buffer[:, :, first : segments[-1].start + plan.slots].to(self._layout.precision.attention)
        found = []
        for segment in segments:
            part = slice(segment.start - first, segment.start - first + plan.slots)
            pair, blank = seen[:, :, part], self._blank(segment)
            if blank is not None:
                pair = self._blanked(pair, blank)
            pair_t = pair.transpose(2, 3)
            if banks == 1:
                (keys, values), (keys_t, values_t) = pair.unbind(0), pair_t.unbind(0)
                views: list[Sequence[Tensor]] = [(keys,), (values,), (keys_t,), (values_t,)]
            else:
                views = [half.unflatten(0, (banks, -1)).unbind(0) for half in (*pair, *pair_t)]
            bias, has_keys = self.bias(segment)
            shared = segment.length if self._counts_memory else None
            distance = self.distance_of_queries(segment) if self._needs_distance else None
            found.append(Window(views[0], views[1], views[2], views[3], bias, distance, shared, has_keys, blank))
        return found

    def _blank(self, segment: Segment) -> Tensor | None:
        """(BG, n) bool, True at slots of a window that stand for zero states; None for none."""
        if self._visibility is None or self._layout.config.memory_start == "empty":
            return None
        blank = self.mask(segment).blank
        assert blank is not None
        return blank[:, 0].repeat_interleave(self._layout.groups // self._layout.plan.batch, 0)

    def _blanked(self, pair: Tensor, blank: Tensor) -> Tensor:
        """Keys and values (2, K*BG, n, E), those of a zero state at the blank slots (BG, n)."""
        config = self._layout.config
        zero = pair.new_zeros(())
        if self._zero is not None:
            by_bank = self._zero.to(pair.dtype).view(config.banks, 2, 1, -1, config.dim_head).transpose(0, 1)
            zero = by_bank.expand(-1, -1, self._layout.plan.batch, -1, -1).reshape(2, -1, 1, config.dim_head)
        return torch.where(blank.repeat(config.banks, 1)[..., None], zero, pair)

    @property
    def true_distances(self) -> bool:
        """Whether a key's place in the window tells how far it is and, but for empty slots, that it is seen."""
        return self._counts_memory and self._visibility is None

    def bias(self, segment: Segment) -> tuple[Tensor, Tensor | None]:
        """The bias (BG, Q, n + local) and `has_keys` (R, 1) of a segment."""
        plan = self._layout.plan
        empty = plan.slots - plan.filled(segment)
        if not self.true_distances:
            mask = self.mask(segment)
            return self._for_heads(mask), self._for_rows(segment, mask.has_keys)
        bias = self.full_bias(segment)
        if not empty:
            return bias, None
        bias = bias.clone()
        bias[..., :empty] = masked_score(bias.dtype)
        sees_none = empty == plan.slots and not segment.local
        return bias, self._for_rows(segment, self.mask(segment).has_keys) if sees_none else None

    def has_keys(self, segments: Sequence[Segment]) -> Tensor | None:
        """For each row of some segments (R, 1), whether it sees anything; None when every row does."""
        if self._visibility is None and (segments[0].local or self._layout.plan.filled(segments[0])):
            return None  # the memory only fills up, so that later segments see something too
        batch = self._layout.plan.batch
        flags = [self._for_rows(segment, self.mask(segment).has_keys) for segment in segments]
        all_true = torch.ones(1, 1, dtype=torch.bool, device=self.buffer.device)
        return torch.cat(
            [
                all_true.expand(segment.length * batch, 1) if flag is None else flag
                for segment, flag in zip(segments, flags, strict=True)
            ]
        )

    def full_bias(self, segment: Segment) -> Tensor:
        """The bias (BG, Q, n + local) of a segment whose window is full, where distances are true ones."""
        bias = self._full_biases.get(segment.length)
        if bias is None:
            bias = self._full_biases[segment.length] = self._for_heads(self._full_mask(segment))
        return bias

    def mask(self, segment: Segment) -> AttentionMask:
        """Which keys a segment sees, and how far they are."""
        if self._latest is None or self._latest[0] != segment:
            config, plan, device = self._layout.config, self._layout.plan, self.buffer.device
            filled = plan.filled(segment)
            mask = attention_mask(config, plan.slots, filled, segment.index, segment.length, self._visibility, device)
            self._latest = segment, mask
        return self._latest[1]

    def _full_mask(self, segment: Segment) -> AttentionMask:
        """The same if its window were full, all seen, and distances true ones."""
        found = self._full_masks.get(segment.length)
        if found is None:
            config, slots = self._layout.config, self._layout.plan.slots
            found = attention_mask(config, slots, slots, segment.index, segment.length, None, self.buffer.device)
            self._full_masks[segment.length] = found
        return found

    def distance(self, segment: Segment) -> Tensor:
        """(length, n + local) or (B, length, n + local), how far each key of a segment's window is."""
        return (self._full_mask(segment) if self._counts_memory else self.mask(segment)).distance

    def distance_of_queries(self, segment: Segment) -> Tensor:
        """(Q, n + local) or (BG, Q, n + local), how far each key of a segment's window is."""
        found = self._distances.get(segment.length)
        if found is None:
            distance, config = self.distance(segment), self._layout.config
            in_group = config.heads // config.groups
            if distance.ndim == 2:
                found = distance.repeat(in_group, 1)
            else:
                found = distance.repeat(1, in_group, 1).repeat_interleave(config.groups, 0)
            if self._counts_memory:
                self._distances[segment.length] = found
        return found

    def _for_heads(self, mask: AttentionMask) -> Tensor:
        """The bias of a mask, (BG, Q, n + local)."""
        config, batch = self._layout.config, self._layout.plan.batch
        bias = self.by_distance[:, mask.distance].movedim(0, -3)
        bias = bias.masked_fill(mask.masked.unsqueeze(-3), masked_score(bias.dtype))
        return bias.expand(batch, config.heads, -1, -1).reshape(self._layout.groups, -1, bias.shape[-1])

    def _for_rows(self, segment: Segment, has_keys: Tensor | None) -> Tensor | None:
        """A flag of each batch row, (B or 1, 1, 1), for each row of a step: (R, 1)."""
        if has_keys is None:
            return None
        return has_keys.expand(self._layout.plan.batch, segment.length, 1).reshape(-1, 1)

    def all_keys_values(self, dtype: torch.dtype, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, carried + T, K*G*E), carried ones first; or the first `count` of them."""
        first = self._layout.plan.slots - self._layout.plan.carried
        return self._as_rows(self.buffer[:, :, first : None if count is None else first + count], dtype)

    def gradient(self, grad_keys: Tensor | None, grad_values: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The gradient of the buffer, from those of `all_keys_values`."""
        plan, config = self._layout.plan, self._layout.config
        total = torch.zeros_like(self.buffer, dtype=dtype)
        for place, grad in zip(total[:, :, plan.slots - plan.carried :], (grad_keys, grad_values), strict=True):
            if grad is not None:
                heads = grad.unflatten(-1, (config.banks, -1, config.dim_head)).permute(2, 0, 3, 1, 4)
                place.unflatten(0, (config.banks, plan.batch, -1)).copy_(heads)
        return total

    def carried_gradient(self, total: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The gradients (B, carried, K*G*E) of the carried keys and values, from that of the buffer."""
        plan = self._layout.plan
        return self._as_rows(total[:, :, plan.slots - plan.carried : plan.slots], dtype)

    def _as_rows(self, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        heads = slots.unflatten(1, (self._layout.config.banks, self._layout.plan.batch, -1))
        halves = heads.permute(0, 2, 4, 1, 3, 5)  # (2, B, slots, K, G, E)
        # Tensors of their own, as autograd lets nobody change views that come out of a walk.
        keys, values = (half.new_empty(*half.shape[:2], half.shape[2:].numel(), dtype=dtype) for half in halves)
        for rows, half in zip((keys, values), halves, strict=True):
            rows.view(half.shape).copy_(half)
        return keys, values

    def add_bias_gradient(self, segment: Segment, grad_scores: Tensor, out: Tensor) -> None:
        """Adds to `out` (H, M+S) what a segment's gradients of the scores (L, BG, Q, n + local) give its biases."""
        batch = self._layout.plan.batch
        distance = self.distance(segment)
        grad = grad_scores.sum(0).view(batch, out.shape[0], segment.length, -1)
        if distance.ndim == 2:
            out.index_add_(1, distance.flatten(), grad.sum(0).flatten(1).to(out.dtype))
        else:
            out.index_add_(1, distance.flatten(), grad.transpose(0, 1).flatten(1).to(out.dtype))
