import dataclasses
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from feedback_transformer_pytorch.errors import MissingExtraError
from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import TRACKERS, TrainOptions
from feedback_transformer_pytorch.training.reporting.trackers import Trackers, check_installed
from feedback_transformer_pytorch.training.saving.run import Run


class Recorder:
    """An accelerator that remembers what it is told."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended = False

    def init_trackers(self, project: str, config: dict[str, Any]) -> None:
        self.config = config

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def end_training(self) -> None:
        self.ended = True


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{name} is not installed; .*pip install '.*\[{name}\]'"):
        check_installed(dataclasses.replace(options, trackers=[name]))


def test_numbers_are_logged_by_kind_and_lists_by_place(options: TrainOptions) -> None:
    recorder = Recorder()
    trackers = Trackers(dataclasses.replace(options, trackers=["wandb"]), SimpleNamespace(accelerator=recorder))
    with trackers.started():
        trackers.log("train", {"update": 7, "loss": 1.5, "layer_weights": [0.25, 0.75]})
        assert not recorder.ended
    numbers = {"train/update": 7, "train/loss": 1.5, "train/layer_weights/0": 0.25, "train/layer_weights/1": 0.75}
    assert recorder.logged == [(7, numbers)]
    assert recorder.ended
    assert (recorder.config["dim"], recorder.config["kv_heads"]) == (16, "None")


def test_trackers_end_when_training_fails(options: TrainOptions) -> None:
    recorder = Recorder()
    trackers = Trackers(dataclasses.replace(options, trackers=["wandb"]), SimpleNamespace(accelerator=recorder))
    with pytest.raises(ZeroDivisionError), trackers.started():
        raise ZeroDivisionError
    assert recorder.ended


def test_without_trackers_nothing_is_begun(options: TrainOptions) -> None:
    trackers = Trackers(options, SimpleNamespace(accelerator=None))
    with trackers.started():
        trackers.log("train", {"update": 7})


def test_tensorboard_gets_the_metrics_of_a_run(options: TrainOptions) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(dataclasses.replace(options, trackers=["tensorboard"]))
    run = Run.open(options.out)
    events = accumulator.EventAccumulator(str(run.path / "feedback-transformer")).Reload()
    for kind in ("train", "validation"):
        logged = {record["update"]: record["bits_per_byte"] for record in run.metrics() if record["kind"] == kind}
        found = {event.step: event.value for event in events.Scalars(f"{kind}/bits_per_byte")}
        assert found == pytest.approx(logged)
