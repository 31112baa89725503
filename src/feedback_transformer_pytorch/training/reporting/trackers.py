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
    """Raises MissingExtraError if a tracker in `--trackers` is not installed."""
    for name in options.trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name)


class Trackers:
    """The trackers in `--trackers`, which get the metrics too. `Processes` must have been created with their names."""

    def __init__(self, options: TrainOptions, processes: Processes) -> None:
        self._options, self._accelerator = options, processes.accelerator

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """A context in which the trackers accept records."""
        if not self._options.trackers:
            yield
            return
        # TensorBoard accepts only plain values.
        config = {
            k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in self._options.to_dict().items()
        }
        self._accelerator.init_trackers(PROJECT, config)
        try:
            yield
        finally:
            self._accelerator.end_training()

    def log(self, kind: str, record: Mapping[str, Any]) -> None:
        """Sends the numbers of a record as `kind/name`, those of a list as `kind/name/index`."""
        if not self._options.trackers:
            return
        numbers: dict[str, float] = {}
        for name, value in record.items():
            values = {f"/{place}": item for place, item in enumerate(value)} if isinstance(value, list) else {"": value}
            numbers |= {f"{kind}/{name}{place}": item for place, item in values.items()}
        self._accelerator.log(numbers, step=record["update"])
