import dataclasses
import json
from collections.abc import Callable

import pytest
import torch

from feedback_transformer_pytorch.training.objective import ACCURACY, BITS_PER_BYTE
from feedback_transformer_pytorch.training.reporting import meter as module
from feedback_transformer_pytorch.training.reporting.meter import Meter
from feedback_transformer_pytorch.training.updates.trainer import Step


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass on a clock that otherwise stands still."""
    now = 100.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    return pass_by


def new_meter() -> Meter:
    return Meter(max_updates=10, device=torch.device("cpu"))


def step(update: int, loss: float = 1.0, *, skipped: bool = False) -> Step:
    return Step(
        update,
        loss=loss,
        grad_norm=2 * loss,
        lr=0.1 * update,
        skipped=skipped,
        tokens=64,
        block_len=8 * update,
        metrics={"bits_per_byte": 2 * loss},
    )


def test_an_interval_is_the_average_of_its_updates(wait: Callable[[float], None]) -> None:
    meter = new_meter()
    for update, loss in ((1, 1.0), (2, 3.0)):
        wait(0.5)
        meter.add(step(update, loss))
    interval = meter.take()
    assert (interval.update, interval.loss, interval.metrics, interval.grad_norm) == (
        2,
        2.0,
        {"bits_per_byte": 4.0},
        4.0,
    )
    assert (interval.tokens, interval.seconds, interval.tokens_per_second) == (128, 1.0, 128.0)
    assert (interval.lr, interval.block_len, interval.seconds_left, interval.skipped) == (0.2, 16, 4.0, 0)
    assert interval.peak_memory_bytes > 10**6


def test_each_interval_starts_afresh_and_totals_go_on(wait: Callable[[float], None]) -> None:
    meter = new_meter()
    for update, loss in ((1, 1.0), (2, 3.0)):
        wait(2)
        meter.add(step(update, loss))
        interval = meter.take()
    assert (interval.loss, interval.tokens_per_second) == (3.0, 32.0)
    assert (interval.tokens, interval.seconds) == (128, 4.0)
    assert meter.so_far() == {"tokens": 128, "seconds": 4.0}


def test_only_time_of_training_counts(wait: Callable[[float], None]) -> None:
    meter = new_meter()
    wait(1)
    meter.resume()
    wait(2)
    meter.pause()
    wait(4)
    meter.resume()
    wait(8)
    meter.add(step(1))
    assert meter.take().seconds == 10


def test_skipped_updates_are_counted_and_left_out_of_the_averages(wait: Callable[[float], None]) -> None:
    meter = new_meter()
    in_row = []
    for update, skipped in enumerate((True, True, False, True), 1):
        wait(1)
        meter.add(step(update, torch.nan if skipped else 1.5, skipped=skipped))
        in_row.append(meter.skipped_in_row)
    interval = meter.take()
    assert in_row == [1, 2, 0, 1]
    assert (interval.loss, interval.grad_norm, interval.skipped) == (1.5, 3.0, 3)
    assert (interval.update, interval.tokens, interval.tokens_per_second) == (4, 256, 64)


def test_without_an_update_that_was_learnt_from_there_is_no_interval() -> None:
    meter = new_meter()
    assert meter.take() is None
    meter.add(step(1, torch.nan, skipped=True))
    assert meter.take() is None


def test_another_meter_goes_on_exactly(wait: Callable[[float], None]) -> None:
    def go_on(meter: Meter) -> None:
        for update in (4, 5):
            wait(0.3)
            meter.add(step(update, 0.7))

    first = new_meter()
    for update, skipped in ((1, True), (2, False), (3, True)):
        wait(0.1)
        first.add(step(update, 1 / 3, skipped=skipped))
    state = json.loads(json.dumps(first.state()))
    second = new_meter()
    second.restore(state)
    assert second.skipped_in_row == 1
    go_on(first)
    expected = first.take()
    second.resume()
    go_on(second)
    found = second.take()
    assert found.to_dict() | {"peak_memory_bytes": 0} == expected.to_dict() | {"peak_memory_bytes": 0}


def test_skipped_updates_are_shown() -> None:
    meter = new_meter()
    meter.add(step(1))
    assert "skipped" not in meter.take().text([])
    meter.add(step(2, skipped=True))
    meter.add(step(3))
    assert meter.take().text([BITS_PER_BYTE]).endswith("left  1 skipped")


def test_a_figure_is_averaged_over_the_updates_that_have_it() -> None:
    meter = new_meter()
    for update, metrics in enumerate(({"accuracy": 0.5}, {}, {"accuracy": 1.0}), 1):
        meter.add(dataclasses.replace(step(update, loss=1.0 if metrics else 0.0), metrics=metrics))
    interval = meter.take()
    assert interval.loss == 1.0
    assert interval.metrics == {"accuracy": 0.75}
    assert interval.to_dict()["accuracy"] == 0.75
    assert "75.00% right" in interval.text([ACCURACY, BITS_PER_BYTE])


def test_the_state_of_version_0_1_0_has_no_figures() -> None:
    meter = new_meter()
    state = meter.state()
    del state["metrics"]
    meter.restore(state)
    meter.add(step(1))
    assert meter.take().metrics == {"bits_per_byte": 2.0}
