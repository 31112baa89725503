"""What a model is trained to predict, and the metrics that say how well it does: for text, and for labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tasks import IGNORE


@dataclass(frozen=True)
class Metric:
    """A number that says how well a model does.

    Attributes:
        name: its key in metrics.jsonl.
        label: its name on plots.
        template: how to print a value.
        higher_is_better: its direction.
    """

    name: str
    label: str
    template: str
    higher_is_better: bool

    def text(self, value: float) -> str:
        """A value with its unit."""
        return self.template.format(value)

    def best(self, values: Mapping[int, float]) -> int | None:
        """The key of the best finite value; None if there is none."""
        finite = {
            key: value if self.higher_is_better else -value for key, value in values.items() if math.isfinite(value)
        }
        return max(finite, key=finite.__getitem__) if finite else None


BITS_PER_BYTE = Metric("bits_per_byte", "bits per byte", "{:.3f} bits/byte", higher_is_better=False)
ACCURACY = Metric("accuracy", "accuracy", "{:.2%} right", higher_is_better=True)
ACCURACY_LAST = Metric("accuracy_last", "accuracy at the last label", "{:.2%} at the last label", higher_is_better=True)


class Objective(Protocol):
    """What a model is trained to predict. B rows, T tokens, V words."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """They say how well a model does; the first one chooses the best checkpoint."""

    def mask(self, targets: Tensor) -> Tensor:
        """(B, T) bool, True at the targets that count."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss to minimise: nats for each target that counts. Logits (B, T, V), targets (B, T)."""

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the rows, which `values` turns into metrics after they are added up over parts of a batch."""

    def values(self, loss: float, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics by name, from the mean loss and the sums of `measure`. A metric of no target is left out."""


class NextToken:
    """Language modelling: the target is the token that follows, and every token counts.

    Args:
        bits_per_nat: bits per byte for each nat per token.
    """

    metrics = (BITS_PER_BYTE,)

    def __init__(self, bits_per_nat: float) -> None:
        self._bits_per_nat = bits_per_nat

    def mask(self, targets: Tensor) -> Tensor:
        """True everywhere."""
        return torch.ones_like(targets, dtype=torch.bool)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Nats per token."""
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Nothing: the loss says all."""
        return {}

    def values(self, loss: float, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte."""
        return {BITS_PER_BYTE.name: loss * self._bits_per_nat}


class Labels:
    """The label of each position; those that are IGNORE do not count."""

    metrics = (ACCURACY, ACCURACY_LAST)

    def mask(self, targets: Tensor) -> Tensor:
        """True at labels that are not IGNORE."""
        return targets != IGNORE

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Nats per label; 0 if there is none."""
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        return nats / self.mask(targets).sum().clamp(min=1)

    @torch.no_grad()
    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Numbers of labels, of right labels, of rows with a label, and of right last labels of rows."""
        mask = self.mask(targets)
        right = mask & (logits.argmax(-1) == targets)
        position = torch.arange(targets.shape[1], device=targets.device)
        last = torch.where(mask, position, -1).amax(1)
        return {
            "labels": mask.sum(),
            "right": right.sum(),
            "rows": (last >= 0).sum(),
            "last_right": right.gather(1, last.clamp(min=0)[:, None]).sum(),
        }

    def values(self, loss: float, sums: Mapping[str, float]) -> dict[str, float]:
        """The share of right labels, and that of right last labels of rows."""
        if not sums["labels"]:
            return {}
        return {
            ACCURACY.name: sums["right"] / sums["labels"],
            ACCURACY_LAST.name: sums["last_right"] / sums["rows"],
        }
