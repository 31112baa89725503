"""Training for long: memory does not grow."""

import dataclasses
import gc
from pathlib import Path

import pytest

from feedback_transformer_pytorch.training import loop
from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.updates.trainer import Step

SETTLED, UPDATES = 1000, 3000
ALLOWED = 0.01


def resident_bytes() -> int:
    """Memory of this process, now."""
    gc.collect()
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_grows_less_than_a_hundredth_in_two_thousand_updates(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a validation, a picture and a checkpoint every so often."""
    options = dataclasses.replace(
        options,
        max_updates=UPDATES,
        eval_every=100,
        checkpoint_every=50,
        log_every=10,
        dropout=0.1,
        dim=64,
        dim_head=32,
    )
    measured: dict[int, int] = {}
    original = loop.Trainer.step

    def step(self: loop.Trainer) -> Step:
        found = original(self)
        if found.update in (SETTLED, UPDATES):
            measured[found.update] = resident_bytes()
        return found

    monkeypatch.setattr(loop.Trainer, "step", step)
    train(options)
    growth = measured[UPDATES] / measured[SETTLED] - 1
    print(f"{measured[SETTLED]:,} bytes after {SETTLED} updates, {growth:+.2%} after {UPDATES}")
    assert growth < ALLOWED
