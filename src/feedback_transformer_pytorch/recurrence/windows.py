"""The memory buffer of a walk, and the window of it that each segment sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..position import bucket
from ..segments import Visibility
from .plan import Segment
from .sublayers import Window
from .tape import Layout
from .window import View, masked_bias, view


class Windows:
    """Keys and values of the carried memory and of all tokens in one buffer; a window is a view of it.

    Attributes:
        buffer: (2, BG, n + T, E). The carried memory ends at slot n, and slots before it are masked; token t goes to
            slot n + t, so a segment that starts at token t sees slots t to t + n.
    """

    def __init__(self, layout: Layout, buffer: Tensor, by_distance: Tensor, visibility: Visibility | None) -> None:
        """Sets up; `by_distance` (H, M+S) is the bias of each distance."""
        self._layout, self.buffer, self.by_distance, self._visibility = layout, buffer, by_distance, visibility
        # What segments of one length see of a full window. At most S lengths occur, so this stays small.
        self._full_views: dict[int, View] = {}
        self._full_biases: dict[int, Tensor] = {}
        self._buckets: dict[int, Tensor] = {}

    @staticmethod
    def fresh(layout: Layout, keys: Tensor, values: Tensor) -> Tensor:
        """The buffer with the carried keys and values (B, carried, G*E) in place."""
        plan, config = layout.plan, layout.config
        groups = plan.batch * (config.kv_heads or config.heads)
        precision = layout.precision
        buffer = keys.new_empty(2, groups, plan.slots + plan.time, config.dim_head, dtype=precision.stored)
        buffer[:, :, : plan.slots - plan.carried] = 0
        for place, carried in zip(buffer, (keys, values), strict=True):
            heads = carried.to(precision.memory).unflatten(-1, (-1, config.dim_head)).transpose(1, 2)
            place[:, plan.slots - plan.carried : plan.slots].unflatten(0, (plan.batch, -1)).copy_(heads)
        return buffer

    def write(self, segment: Segment, rows: Tensor) -> None:
        """Puts keys and values (B*s, 2*G*E) of a segment into its slots."""
        self.slots(segment).copy_(self.as_slots(segment, rows.to(self._layout.precision.memory)))

    def slots(self, segment: Segment) -> Tensor:
        """(2, B, G, s, E): the slots of a segment."""
        first = self._layout.plan.slots + segment.start
        return self.buffer[:, :, first : first + segment.length].unflatten(1, (self._layout.plan.batch, -1))

    def as_slots(self, segment: Segment, rows: Tensor) -> Tensor:
        """Rows (B*s, 2*G*E) seen as (2, B, G, s, E)."""
        width = self._layout.config.dim_head
        return rows.view(self._layout.plan.batch, segment.length, 2, -1, width).permute(2, 0, 3, 1, 4)

    def as_heads(self, segment: Segment, rows: Tensor) -> Tensor:
        """Rows (L, B*s, H*E) as heads (L, BG, Q, E)."""
        config, batch = self._layout.config, self._layout.plan.batch
        groups = config.kv_heads or config.heads
        heads = rows.view(rows.shape[0], batch, segment.length, groups, config.heads // groups, config.dim_head)
        return heads.permute(0, 1, 3, 4, 2, 5).reshape(rows.shape[0], batch * groups, -1, config.dim_head)

    def window(self, segment: Segment) -> Window:
        """What a segment sees."""
        return self.windows([segment])[0]

    def windows(self, segments: Sequence[Segment]) -> list[Window]:
        """What consecutive segments see."""
        plan, first = self._layout.plan, segments[0].start
        seen = self.buffer[:, :, first : segments[-1].start + plan.slots].to(self._layout.precision.attention)
        found = []
        for segment in segments:
            start = segment.start - first
            keys, values = seen[:, :, start : start + plan.slots].unbind(0)
            bias, has_keys = self.bias(segment)
            buckets = self.buckets(segment)
            found.append(Window(keys, values, keys.transpose(1, 2), values.transpose(1, 2), bias, buckets, has_keys))
        return found

    @property
    def true_distances(self) -> bool:
        """Whether a key's place in the window tells how far it is and, but for empty slots, that it is seen."""
        return self._layout.config.position != "legacy" and self._visibility is None

    def bias(self, segment: Segment) -> tuple[Tensor, Tensor | None]:
        """The bias (BG, Q, n + local) and `has_keys` (R, 1) of a segment."""
        plan = self._layout.plan
        empty = plan.slots - plan.filled(segment)
        if not self.true_distances:
            seen = self.view(segment)
            return self._for_heads(seen), self._for_rows(segment, seen.has_keys)
        bias = self.full_bias(segment)
        if not empty:
            return bias, None
        bias = bias.clone()
        bias[..., :empty] = masked_bias(bias.dtype)
        sees_none = empty == plan.slots and not segment.local
        return bias, self._for_rows(segment, self.view(segment).has_keys) if sees_none else None

    def full_bias(self, segment: Segment) -> Tensor:
        """The bias (BG, Q, n + local) of a segment whose window is full, where distances are true ones."""
        bias = self._full_biases.get(segment.length)
        if bias is None:
            bias = self._full_biases[segment.length] = self._for_heads(self._full_view(segment))
        return bias

    def buckets(self, segment: Segment) -> Tensor | None:
        """(Q, n + local), the bucket of each query's distance to each key; None where no vectors are added."""
        config = self._layout.config
        if config.position != "relative":
            return None
        found = self._buckets.get(segment.length)
        if found is None:
            in_group = config.heads // (config.kv_heads or config.heads)
            found = bucket(self._full_view(segment).distance).repeat(in_group, 1)
            self._buckets[segment.length] = found
        return found

    def view(self, segment: Segment) -> View:
        """Which keys a segment sees, and how far they are."""
        config, plan, device = self._layout.config, self._layout.plan, self.buffer.device
        filled = plan.filled(segment)
        return view(config, plan.slots, filled, segment.index, segment.length, self._visibility, device)

    def _full_view(self, segment: Segment) -> View:
        """The same if its window were full, all seen, and distances true ones."""
        found = self._full_views.get(segment.length)
        if found is None:
            config, slots = self._layout.config, self._layout.plan.slots
            found = view(config, slots, slots, segment.index, segment.length, None, self.buffer.device)
            self._full_views[segment.length] = found
        return found

    def _for_heads(self, seen: View) -> Tensor:
        """The bias of a view, (BG, Q, n + local)."""
        config, batch = self._layout.config, self._layout.plan.batch
        bias = seen.bias(self.by_distance)
        groups = batch * (config.kv_heads or config.heads)
        return bias.expand(batch, config.heads, -1, -1).reshape(groups, -1, bias.shape[-1])

    def _for_rows(self, segment: Segment, has_keys: Tensor | None) -> Tensor | None:
        """A flag of each batch row, (B or 1, 1, 1), for each row of a step: (R, 1)."""
        if has_keys is None:
            return None
        return has_keys.expand(self._layout.plan.batch, segment.length, 1).reshape(-1, 1)

    def all_keys_values(self, dtype: torch.dtype, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, carried + T, G*E), carried ones first; or the first `count` of them."""
        first = self._layout.plan.slots - self._layout.plan.carried
        return self._as_rows(self.buffer[:, :, first : None if count is None else first + count], dtype)

    def gradient(self, grad_keys: Tensor | None, grad_values: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The gradient of the buffer, from those of `all_keys_values`."""
        plan = self._layout.plan
        total = torch.zeros_like(self.buffer, dtype=dtype)
        for place, grad in zip(total[:, :, plan.slots - plan.carried :], (grad_keys, grad_values), strict=True):
            if grad is not None:
                heads = grad.unflatten(-1, (-1, self._layout.config.dim_head)).transpose(1, 2)
                place.unflatten(0, (plan.batch, -1)).copy_(heads)
        return total

    def carried_gradient(self, total: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The gradients (B, carried, G*E) of the carried keys and values, from that of the buffer."""
        plan = self._layout.plan
        return self._as_rows(total[:, :, plan.slots - plan.carried : plan.slots], dtype)

    def _as_rows(self, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        heads = slots.unflatten(1, (self._layout.plan.batch, -1)).transpose(2, 3)
        rows = heads.to(dtype, memory_format=torch.contiguous_format, copy=True).flatten(-2)
        return rows[0], rows[1]

    def add_bias_gradient(self, segment: Segment, grad_scores: Tensor, out: Tensor) -> None:
        """Adds to `out` (H, M+S) what a segment's gradients of the scores (L, BG, Q, n + local) give its biases."""
        batch = self._layout.plan.batch
        distance = self.distance(segment)
        grad = grad_scores.sum(0).view(batch, out.shape[0], segment.length, -1)
        if distance.ndim == 2:
            out.index_add_(1, distance.flatten(), grad.sum(0).flatten(1).to(out.dtype))
        else:
            out.index_add_(1, distance.flatten(), grad.transpose(0, 1).flatten(1).to(out.dtype))

    def distance(self, segment: Segment) -> Tensor:
        """(length, n + local) or (B, length, n + local), how far each key of a segment's window is."""
        return (self._full_view(segment) if self.true_distances else self.view(segment)).distance
