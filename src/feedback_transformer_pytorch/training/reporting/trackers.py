"""TensorBoard, Weights & Biases and Trackio, through Accelerate."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import MissingExtraError
from ..options import TrainOptions
from ..processes import Processes

PROJECT = "feedback-transformer"


def check_installed(options: TrainOptions) -> None:
    """Raises MissingExtraError if a tracker that is asked for is not installed."""
    for name in options.trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name)


class Trackers:
    """Where metrics go besides metrics.jsonl; `Processes` was told of them."""

    def __init__(self, options: TrainOptions, processes: Processes) -> None:
        self._options, self._accelerator = options, processes.accelerator

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """They listen while it is entered."""
        if not self._options.trackers:
            yield
            return
        # TensorBoard takes plain values only.
        config = {
            k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in self._options.to_dict().items()
        }
        self._accelerator.init_trackers(PROJECT, config)
        try:
            yield
        finally:
            self._accelerator.end_training()

    def log(self, kind: str, record: Mapping[str, Any]) -> None:
        """Sends a record's numbers as `kind/name`; a list's as `kind/name/place`."""
        if not self._options.trackers:
            return
        numbers: dict[str, float] = {}
        for name, value in record.items():
            values = {f"/{place}": item for place, item in enumerate(value)} if isinstance(value, list) else {"": value}
            numbers |= {f"{kind}/{name}{place}": item for place, item in values.items()}
        self._accelerator.log(numbers, step=record["update"])
