"""Averages of what training does between two reports."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import timedelta

from .trainer import Step


@dataclass(frozen=True)
class Interval:
    """Averages over the updates since the last report.

    Attributes:
        update: updates done, in all.
        loss: nats per token.
        bits_per_byte: the same loss per byte of text.
        grad_norm: before clipping.
        lr: the learning rate of the last update.
        tokens_per_second: without the time that validation takes.
        seconds_left: until the last update, without validation.
    """

    update: int
    loss: float
    bits_per_byte: float
    grad_norm: float
    lr: float
    tokens_per_second: float
    seconds_left: float

    def to_dict(self) -> dict[str, float]:
        """What is worth keeping, for metrics.jsonl."""
        values = asdict(self)
        del values["seconds_left"]
        return values

    def __str__(self) -> str:
        left = timedelta(seconds=round(self.seconds_left))
        return (
            f"loss {self.loss:.3f}  {self.bits_per_byte:.3f} bits/byte  "
            f"{self.tokens_per_second:,.0f} tokens/s  {left} left"
        )


class Meter:
    """Gathers updates. It asks the device for their values only when a report is due, so that nothing waits for it."""

    def __init__(self, *, tokens_per_update: int, bits_per_nat: float, max_updates: int) -> None:
        self._tokens_per_update = tokens_per_update
        self._bits_per_nat = bits_per_nat
        self._max_updates = max_updates
        self.restart()

    def restart(self) -> None:
        """Forgets what was gathered; time counts from now."""
        self._steps: list[Step] = []
        self._since = time.perf_counter()

    def add(self, step: Step) -> None:
        """One more update."""
        self._steps.append(step)

    def take(self) -> Interval | None:
        """The averages since the last call or `restart`, None if there was no update; then starts afresh."""
        if not self._steps:
            return None
        count, last = len(self._steps), self._steps[-1]
        loss = sum(step.loss.item() for step in self._steps) / count
        grad_norm = sum(step.grad_norm.item() for step in self._steps) / count
        seconds_each = (time.perf_counter() - self._since) / count
        self.restart()
        return Interval(
            update=last.update,
            loss=loss,
            bits_per_byte=loss * self._bits_per_nat,
            grad_norm=grad_norm,
            lr=last.lr,
            tokens_per_second=self._tokens_per_update / seconds_each,
            seconds_left=seconds_each * (self._max_updates - last.update),
        )
