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
from .options import TrainOptions


@dataclass(frozen=True)
class Metric:
    """A number that says how well a model does.

    Attributes:
        name: its key in metrics.jsonl and in what `eval` writes.
        label: its name on plots.
        short: how to print a value in a report of training.
        full: how `eval` prints a value, with sums that `Objective.values` makes it of.
        higher_is_better: its direction.
        limits: the worst and the best value; None if there are none.
    """

    name: str
    label: str
    short: str
    full: str
    higher_is_better: bool
    limits: tuple[float, float] | None = None

    def text(self, value: float) -> str:
        """A value with its unit."""
        return self.short.format(value)

    def full_text(self, value: float, sums: Mapping[str, float]) -> str:
        """A value with its unit, and of how much it is."""
        return self.full.format(value, **sums)

    def best(self, values: Mapping[int, float]) -> int | None:
        """The key of the best finite value; None if there is none."""
        finite = {
            key: value if self.higher_is_better else -value for key, value in values.items() if math.isfinite(value)
        }
        return max(finite, key=finite.__getitem__) if finite else None


BITS_PER_BYTE = Metric(
    "bits_per_byte",
    "bits per byte",
    "{:.3f} bits/byte",
    "{:.4f} bits/byte over {bytes:,} bytes",
    higher_is_better=False,
)
ACCURACY = Metric(
    "accuracy",
    "accuracy",
    "{:.2%} right",
    "{:.2%} of {labels:,} labels right",
    higher_is_better=True,
    limits=(0, 1),
)
ACCURACY_LAST = Metric(
    "accuracy_last",
    "accuracy at the last label",
    "{:.2%} at the last label",
    "{:.2%} at the last label",
    higher_is_better=True,
    limits=(0, 1),
)


class Objective(Protocol):
    """What a model is trained to predict. B rows, T tokens, V words."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """They say how well a model does; the first one chooses the best checkpoint."""

    def mask(self, targets: Tensor) -> Tensor:
        """(B, T) bool, True at the targets that count."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss to minimise: nats for each target that counts. Logits (B, T, V), targets (B, T)."""

    def nats(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(), the loss of all targets that count."""

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Counts, bool or integers: at each target, (B, T), or of each row, (B,). `values` takes the sums of these."""

    def values(self, loss: float, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics by name.

        Args:
            loss: nats per target.
            sums: of what `measure` counts; of text that was read from start to end also its `bits` and `bytes`. A
                metric of no target is left out.
        """


class NextToken:
    """Language modelling: the target is the token that follows, and every token counts.

    Args:
        tokens_per_byte: of the text, for losses of which the bytes are not counted.
    """

    metrics = (BITS_PER_BYTE,)

    def __init__(self, tokens_per_byte: float = 1.0) -> None:
        self._bits_per_nat = tokens_per_byte / math.log(2)

    def mask(self, targets: Tensor) -> Tensor:
        """True everywhere."""
        return torch.ones_like(targets, dtype=torch.bool)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Nats per token."""
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def nats(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The nats of all tokens."""
        return F.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none").sum()

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Nothing: the loss says all."""
        return {}

    def values(self, loss: float, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte: of the `bits` and `bytes` in `sums`, or else of the loss."""
        bits = sums["bits"] / sums["bytes"] if "bytes" in sums else loss * self._bits_per_nat
        return {BITS_PER_BYTE.name: bits}


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

    def nats(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The nats of all labels."""
        scores = logits.transpose(1, 2).float()
        return F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="sum")

    @torch.no_grad()
    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Labels and right labels at each target, and whether each row has a last label and whether that is right."""
        mask = self.mask(targets)
        right = mask & (logits.argmax(-1) == targets)
        position = torch.arange(targets.shape[1], device=targets.device)
        last = torch.where(mask, position, -1).amax(1)
        return {
            "labels": mask,
            "right": right,
            "rows": last >= 0,
            "last_right": right.gather(1, last.clamp(min=0)[:, None])[:, 0],
        }

    def values(self, loss: float, sums: Mapping[str, float]) -> dict[str, float]:
        """The share of right labels, and that of right last labels of rows."""
        shares = ((ACCURACY, "right", "labels"), (ACCURACY_LAST, "last_right", "rows"))
        return {metric.name: sums[part] / sums[of] for metric, part, of in shares if sums.get(of)}


def objective_of(options: TrainOptions, tokens_per_byte: float = 1.0) -> Objective:
    """What a model with these options is trained to predict.

    Args:
        tokens_per_byte: of text, as in `NextToken`.
    """
    return Labels() if options.is_labelled else NextToken(tokens_per_byte)
