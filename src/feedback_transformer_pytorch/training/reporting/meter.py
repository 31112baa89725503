"""Averages over the updates between two reports, and totals of the run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import fmean
from typing import Any

import torch

from ..objective import Metric
from ..updates.trainer import Step


@dataclass(frozen=True)
class Interval:
    """Averages over the updates since the last report.

    Attributes:
        update: updates done since the run began.
        tokens: tokens read since the run began.
        seconds: training time since the run began, without validation and saving.
        loss: nats per counted target, averaged over the updates that had one and were not skipped.
        metrics: values of the objective's metrics, averaged over the same updates, where they had them.
        grad_norm: norm of the gradient before clipping, averaged over the updates that were not skipped.
        lr: the learning rate of the last update.
        block_len: tokens of a row at the last update.
        tokens_per_second: training speed, without validation and saving.
        peak_memory_bytes: largest memory of the main process so far; on a GPU, that of its tensors.
        skipped: updates skipped since the run began.
        seconds_left: estimated training time to the last update, without validation and saving.
    """

    update: int
    tokens: int
    seconds: float
    loss: float
    metrics: Mapping[str, float]
    grad_norm: float
    lr: float
    block_len: int
    tokens_per_second: float
    peak_memory_bytes: int
    skipped: int
    seconds_left: float

    def to_dict(self) -> dict[str, float]:
        """The values for metrics.jsonl."""
        values: dict[str, float] = {}
        for name, value in asdict(self).items():
            if name == "metrics":
                values |= value
            elif name != "seconds_left":
                values[name] = value
        return values

    def text(self, metrics: Sequence[Metric]) -> str:
        """The values for people, with those metrics that were measured."""
        measured = [metric.text(self.metrics[metric.name]) for metric in metrics if metric.name in self.metrics]
        left = timedelta(seconds=round(self.seconds_left))
        skipped = [f"{self.skipped} skipped"] if self.skipped else []
        speed = f"{self.tokens_per_second:,.0f} tokens/s"
        return "  ".join([f"loss {self.loss:.3f}", *measured, speed, f"{left} left", *skipped])


class Meter:
    """Collects the results and the time of updates.

    Attributes:
        skipped: updates skipped since the run began.
        skipped_in_row: updates skipped since the last one that was not.
    """

    def __init__(self, *, max_updates: int, device: torch.device) -> None:
        self._max_updates, self._device = max_updates, device
        self.skipped = self.skipped_in_row = 0
        self._tokens, self._seconds = 0, 0.0
        self._losses: list[float] = []
        self._grad_norms: list[float] = []
        self._metrics: list[dict[str, float]] = []
        self._interval_tokens, self._interval_seconds, self._interval_updates = 0, 0.0, 0
        self.resume()

    def resume(self) -> None:
        """Starts the clock; call it after anything that does not count as training."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stops the clock until `resume`."""
        passed = time.perf_counter() - self._since
        self._seconds += passed
        self._interval_seconds += passed
        self.resume()

    def add(self, step: Step) -> None:
        """Adds an update."""
        self._tokens += step.tokens
        self._interval_tokens += step.tokens
        self._interval_updates += 1
        self.skipped_in_row = self.skipped_in_row + 1 if step.skipped else 0
        if step.skipped:
            self.skipped += 1
        else:
            if step.metrics:  # not without a target that counts
                self._losses.append(step.loss)
            self._grad_norms.append(step.grad_norm)
            self._metrics.append(dict(step.metrics))
        self._last = step

    def take(self) -> Interval | None:
        """Returns the averages over the current interval and starts a new one.

        If all updates of the interval were skipped or had no target that counts, it returns None, and the interval
        goes on.
        """
        self.pause()
        if not self._losses:
            return None
        loss = fmean(self._losses)
        speed = self._interval_tokens / self._interval_seconds
        updates = self._max_updates - self._last.update
        interval = Interval(
            update=self._last.update,
            tokens=self._tokens,
            seconds=self._seconds,
            loss=loss,
            metrics=_means(self._metrics),
            grad_norm=fmean(self._grad_norms),
            lr=self._last.lr,
            block_len=self._last.block_len,
            tokens_per_second=speed,
            peak_memory_bytes=_peak_memory(self._device),
            skipped=self.skipped,
            seconds_left=updates * self._interval_seconds / self._interval_updates,
        )
        self._losses, self._grad_norms, self._metrics = [], [], []
        self._interval_tokens, self._interval_seconds, self._interval_updates = 0, 0.0, 0
        return interval

    def so_far(self) -> dict[str, float]:
        """Tokens and seconds of training since the run began, for a line of metrics.jsonl."""
        return {"tokens": self._tokens, "seconds": self._seconds}

    def state(self) -> dict[str, Any]:
        """The state of this meter as plain values, for `restore`."""
        self.pause()
        return {
            **self.so_far(),
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "losses": self._losses,
            "grad_norms": self._grad_norms,
            "metrics": self._metrics,
            "interval_updates": self._interval_updates,
            "interval_tokens": self._interval_tokens,
            "interval_seconds": self._interval_seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from the state of another meter."""
        self._tokens, self._seconds = state["tokens"], state["seconds"]
        self.skipped, self.skipped_in_row = state["skipped"], state["skipped_in_row"]
        self._losses, self._grad_norms = list(state["losses"]), list(state["grad_norms"])
        self._metrics = list(state.get("metrics", []))  # old checkpoints have none
        self._interval_updates = state["interval_updates"]
        self._interval_tokens, self._interval_seconds = state["interval_tokens"], state["interval_seconds"]
        self.resume()


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the updates that have it."""
    names = dict.fromkeys(name for found in metrics for name in found)
    return {name: fmean(found[name] for found in metrics if name in found) for name in names}


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
