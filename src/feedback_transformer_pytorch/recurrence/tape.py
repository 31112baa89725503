"""What the forward walk keeps for the backward walk, and the views of it that each step reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..config import FeedbackConfig
from .plan import Plan, Segment
from .precision import Precision


class Values(NamedTuple):
    """Values of all layers for some segments: of the sequence, of a chunk of it, or of one step; R are their rows.

    Attributes:
        q: (L, R, H*E), scaled.
        local: (L, R, 2*G*E), keys and values of the segments themselves; None where every segment is a lone token.
        probabilities: (L, BG, Q, n + local) of each segment, one behind the other.
        out: (L, R, H*E), what attention gave.
        middle: (L, R, D), after attention and its residual.
        hidden: (L, R, 8*D), the feed-forward before its gate.
    """

    q: Tensor
    local: Tensor | None
    probabilities: Tensor
    out: Tensor
    middle: Tensor
    hidden: Tensor

    def part(self, layout: Layout, segments: Sequence[Segment], among: Sequence[Segment]) -> Values:
        """The values of some of the segments that these values are laid out for."""
        rows, scores = layout.span(segments, among)
        local = None if self.local is None else self.local[:, rows]
        return Values(
            self.q[:, rows], local, self.probabilities[scores], self.out[:, rows], self.middle[:, rows],
            self.hidden[:, rows],
        )  # fmt: skip


class Masks(NamedTuple):
    """Dropout masks, laid out like the values of the same name; None without dropout.

    Attributes:
        probabilities: as in `Values`.
        hidden: (L, R, 4*D).
    """

    probabilities: Tensor | None
    hidden: Tensor | None

    def part(self, layout: Layout, segments: Sequence[Segment], among: Sequence[Segment]) -> Masks:
        """The masks of some of the segments that these masks are laid out for."""
        rows, scores = layout.span(segments, among)
        return Masks(
            None if self.probabilities is None else self.probabilities[scores],
            None if self.hidden is None else self.hidden[:, rows],
        )


NO_MASKS = Masks(None, None)


class Step(NamedTuple):
    """The views of one layer and segment."""

    q: Tensor
    local: Tensor | None
    probabilities: Tensor
    out: Tensor
    middle: Tensor
    hidden: Tensor
    probabilities_mask: Tensor | None
    hidden_mask: Tensor | None


class StepMasks(NamedTuple):
    """The dropout masks of one layer and segment, as in `Masks`."""

    probabilities: Tensor | None
    hidden: Tensor | None


class Layout(NamedTuple):
    """The shapes of values."""

    config: FeedbackConfig
    plan: Plan
    precision: Precision

    def values(self, segments: Sequence[Segment], like: Tensor) -> Values:
        """Unwritten values for these segments, on the device of `like` and, between sub-layers, in its type."""
        config, layers, rows = self.config, self.config.depth, self._rows(segments)
        products = like.new_empty(0, dtype=self.precision.products)
        attention = like.new_empty(0, dtype=self.precision.attention)
        inner = config.heads * config.dim_head
        all_single = all(segment.length == 1 for segment in segments)
        return Values(
            q=attention.new_empty(layers, rows, inner),
            local=None if all_single else attention.new_empty(layers, rows, 2 * config.kv_dim),
            probabilities=attention.new_empty(sum(self.score_counts(segments))),
            out=attention.new_empty(layers, rows, inner),
            middle=like.new_empty(layers, rows, config.dim),
            hidden=products.new_empty(layers, rows, 2 * config.hidden_dim),
        )

    def masks(self, segments: Sequence[Segment], like: Tensor, attention: bool, feedforward: bool) -> Masks:
        """Unwritten dropout masks for these segments, of those dropouts that are on."""
        config, precision = self.config, self.precision
        scores = like.new_empty(sum(self.score_counts(segments)) if attention else 0, dtype=precision.attention)
        hidden = (config.depth, self._rows(segments), config.hidden_dim) if feedforward else (0,)
        return Masks(
            scores if attention else None,
            like.new_empty(hidden, dtype=precision.products) if feedforward else None,
        )

    def steps(self, segments: Sequence[Segment], values: Values | None, masks: Masks, like: Tensor) -> list[list[Step]]:
        """For each segment, for each layer, its views of values and masks that are laid out for these segments.

        Without values all steps of one length write to the same place.
        """
        if values is not None:
            valued = self._views(segments, values)
        else:
            one_each = {segment.length: segment for segment in segments}
            scratch = {length: self._views([s], self.values([s], like))[0] for length, s in one_each.items()}
            valued = [scratch[segment.length] for segment in segments]
        return [
            [
                Step._make((*(None if part is None else part[layer] for part in parts), *masked))
                for layer, masked in enumerate(step_masks)
            ]
            for parts, step_masks in zip(valued, self.step_masks(segments, masks), strict=True)
        ]

    def step_masks(self, segments: Sequence[Segment], masks: Masks) -> list[list[StepMasks]]:
        """For each segment, for each layer, its views of masks that are laid out for these segments."""
        scores, rows = self.scores(segments, masks.probabilities), self._by_rows(segments, masks.hidden)
        layers = range(self.config.depth)
        return [
            [StepMasks._make(None if part is None else part[layer] for part in parts) for layer in layers]
            for parts in zip(scores, rows, strict=True)
        ]

    def states(self, segments: Sequence[Segment], states: Tensor | None, like: Tensor) -> list[Tensor]:
        """For each segment the view (L+1, R, D) of states; without states, all of one length are the same place."""
        if states is not None:
            return list(states.split([segment.length * self.plan.batch for segment in segments], dim=1))
        scratch = {
            length: like.new_empty(self.config.depth + 1, length * self.plan.batch, self.config.dim)
            for length in {segment.length for segment in segments}
        }
        return [scratch[segment.length] for segment in segments]

    def span(self, segments: Sequence[Segment], among: Sequence[Segment]) -> tuple[slice, slice]:
        """Where consecutive `segments` lie in what is laid out for `among`: their rows, and their scores."""
        before = among[: segments[0].index - among[0].index]
        first, offset = self._rows(before), sum(self.score_counts(before))
        return (
            slice(first, first + self._rows(segments)),
            slice(offset, offset + sum(self.score_counts(segments))),
        )

    def _views(self, segments: Sequence[Segment], values: Values) -> list[tuple[Any, ...]]:
        parts = (
            self._by_rows(segments, values.q),
            self._by_rows(segments, values.local),
            self.scores(segments, values.probabilities),
            self._by_rows(segments, values.out),
            self._by_rows(segments, values.middle),
            self._by_rows(segments, values.hidden),
        )
        all_single = [segment.length == 1 for segment in segments]
        return [
            (q, None if lone else local, *rest)
            for lone, (q, local, *rest) in zip(all_single, zip(*parts, strict=True), strict=True)
        ]

    def scores(self, segments: Sequence[Segment], flat: Tensor | None) -> list[Tensor] | list[None]:
        """For each segment the view (L, BG, Q, n + local)."""
        if flat is None:
            return [None] * len(segments)
        config = self.config
        groups = self.plan.batch * (config.kv_heads or config.heads)
        parts = flat.split(self.score_counts(segments))
        return [
            part.view(config.depth, groups, -1, self.plan.slots + segment.local)
            for part, segment in zip(parts, segments, strict=True)
        ]

    def _by_rows(self, segments: Sequence[Segment], tensor: Tensor | None) -> list[list[Tensor]] | list[None]:
        if tensor is None:
            return [None] * len(segments)
        counts = [segment.length * self.plan.batch for segment in segments]
        return [list(layers) for layers in zip(*(layer.split(counts) for layer in tensor), strict=True)]

    def _rows(self, segments: Sequence[Segment]) -> int:
        return sum(segment.length for segment in segments) * self.plan.batch

    def score_counts(self, segments: Sequence[Segment]) -> list[int]:
        """How many scores each segment has in all layers."""
        per_query = self.config.depth * self.plan.batch * self.config.heads
        return [per_query * segment.length * (self.plan.slots + segment.local) for segment in segments]
