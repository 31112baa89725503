"""What the forward walk saves for the backward walk, and the views of it that each step reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ...config import FeedbackConfig
from .plan import Plan, Segment
from .precision import Precision

# What is saved, by "sub-layer.name": of all layers, for some segments. None where no segment has it.
Values: TypeAlias = dict[str, Tensor | None]
# The views of one layer and segment.
Step: TypeAlias = dict[str, Tensor | None]


class Saved(NamedTuple):
    """Something that a sub-layer saves of every step, in every layer.

    Attributes:
        per: "row": (L, R, width) for the R rows of the segments. "local row": the same, but not of segments of a
            single token, which have no local keys. "score": (L, BG, Q, n + local) of each segment, one after another
            in one flat tensor.
        width: numbers a row.
        dtype: their type.
    """

    per: Literal["row", "local row", "score"]
    width: int
    dtype: torch.dtype


class Layout(NamedTuple):
    """The shapes of what is saved.

    Attributes:
        saved: what is saved, by "sub-layer.name".
        masks: dropout masks, likewise.
    """

    config: FeedbackConfig
    plan: Plan
    precision: Precision
    saved: Mapping[str, Saved]
    masks: Mapping[str, Saved]

    def empty(self, kinds: Mapping[str, Saved], segments: Sequence[Segment], like: Tensor) -> Values:
        """Unwritten tensors for these segments, on the device of `like`."""
        return {name: self._empty(kind, segments, like) for name, kind in kinds.items()}

    def _empty(self, kind: Saved, segments: Sequence[Segment], like: Tensor) -> Tensor | None:
        if kind.per == "score":
            return like.new_empty(sum(self.score_counts(segments)), dtype=kind.dtype)
        if kind.per == "local row" and all(segment.length == 1 for segment in segments):
            return None
        return like.new_empty(self.config.depth, self.rows(segments), kind.width, dtype=kind.dtype)

    def part(self, values: Values, segments: Sequence[Segment], among: Sequence[Segment]) -> Values:
        """The part of consecutive `segments` in values that are laid out for `among`."""
        before = among[: segments[0].index - among[0].index]
        first, offset = self.rows(before), sum(self.score_counts(before))
        rows = slice(first, first + self.rows(segments))
        scores = slice(offset, offset + sum(self.score_counts(segments)))
        kinds = {**self.saved, **self.masks}
        return {
            name: None if value is None else value[scores] if kinds[name].per == "score" else value[:, rows]
            for name, value in values.items()
        }

    def steps(self, segments: Sequence[Segment], values: Values) -> list[list[Step]]:
        """For each segment, for each layer, its views of values that are laid out for these segments."""
        kinds = {**self.saved, **self.masks}
        found: list[list[Step]] = [[{} for _ in range(self.config.depth)] for _ in segments]
        for name, value in values.items():
            views = self._views(kinds[name], segments, value)
            for steps, layers in zip(found, views, strict=True):
                for step, view in zip(steps, layers, strict=True):
                    step[name] = view
        return found

    def _views(self, kind: Saved, segments: Sequence[Segment], value: Tensor | None) -> list[Sequence[Tensor | None]]:
        """For each segment, for each layer, a view."""
        none = [None] * self.config.depth
        if value is None:
            return [none] * len(segments)
        if kind.per == "score":
            return [view.unbind(0) for view in self.scores(segments, value)]
        counts = [segment.length * self.plan.batch for segment in segments]
        views: list[Sequence[Tensor | None]] = list(
            zip(*(layer.split(counts) for layer in value.unbind(0)), strict=True)
        )
        if kind.per == "row":
            return views
        return [none if segment.length == 1 else view for segment, view in zip(segments, views, strict=True)]

    def scores(self, segments: Sequence[Segment], flat: Tensor) -> list[Tensor]:
        """For each segment the view (L, BG, Q, n + local) of what is saved per score."""
        parts = flat.split(self.score_counts(segments))
        return [
            part.view(self.config.depth, self.groups, -1, self.plan.slots + segment.local)
            for part, segment in zip(parts, segments, strict=True)
        ]

    @property
    def groups(self) -> int:
        """BG, batch times key/value heads."""
        return self.plan.batch * self.config.groups

    def rows(self, segments: Iterable[Segment]) -> int:
        """How many rows some segments have."""
        return sum(segment.length for segment in segments) * self.plan.batch

    def score_counts(self, segments: Sequence[Segment]) -> list[int]:
        """How many scores each segment has in all layers."""
        per_query = self.config.depth * self.plan.batch * self.config.heads
        return [per_query * segment.length * (self.plan.slots + segment.local) for segment in segments]
