import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training import loop
from feedback_transformer_pytorch.training.loop import Outcome, train
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.run import Run
from feedback_transformer_pytorch.training.trainer import Step


def metrics_without_speed(path: Path) -> list[dict[str, Any]]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]


def test_a_run_leaves_everything_behind(options: TrainOptions, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(options) == Outcome(6, None)
    run = Run.open(options.out)
    kinds = [(record["kind"], record.get("update")) for record in run.metrics()]
    assert kinds == [
        ("xz", None),
        ("train", 2),
        ("train", 4),
        ("validation", 4),
        ("train", 6),
        ("validation", 6),
    ]
    assert sorted(file.name for file in run.path.iterdir()) == [
        "config.yaml",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
    ]
    shown = capsys.readouterr().out
    assert "update 6/6  held-out" in shown
    assert "alone" in shown
    assert "after the training text" in shown
    assert "sample:" in shown


def test_the_same_seed_gives_the_same_run_and_another_seed_another(options: TrainOptions, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("first", "again", "other")]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        train(dataclasses.replace(options, out=str(out), seed=seed))
    first, again, other = map(metrics_without_speed, outs)
    assert first == again
    assert first != other
    assert (outs[0] / "model.safetensors").read_bytes() == (outs[1] / "model.safetensors").read_bytes()


def test_validation_does_not_change_what_is_learnt(options: TrainOptions, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("often", "once")]
    for out, eval_every in zip(outs, (1, 6), strict=True):
        train(dataclasses.replace(options, out=str(out), eval_every=eval_every, log_every=1))
    losses = [[r["loss"] for r in metrics_without_speed(out) if r["kind"] == "train"] for out in outs]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("moment", ["step", "bits_per_byte", "sample"])
def test_a_stop_saves_the_weights_of_the_last_update(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    """Between updates, while validating, and while writing a sample."""
    owner = loop.Trainer if moment == "step" else loop.Validation
    original = getattr(owner, moment)

    def interrupted(self: Any, *arguments: Any) -> Any:
        if moment != "step" or self.update == 4:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(owner, moment, interrupted)
    last = 5 if moment == "step" else 4
    assert train(options) == Outcome(last, signal.SIGTERM)
    run = Run.open(options.out)
    run.load_model(256)
    assert [record["update"] for record in run.metrics() if record["kind"] == "train"][-1] == last
    shown = capsys.readouterr().out
    assert f"stopped by SIGTERM after update {last} of 6" in shown
    assert f"feedback-transformer generate {options.out}" in shown


def test_divergence_ends_the_run_and_keeps_the_last_weights(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Trainer.step

    def step(self: loop.Trainer) -> Step:
        step = original(self)
        return dataclasses.replace(step, loss=step.loss * torch.nan) if step.update == 5 else step

    monkeypatch.setattr(loop.Trainer, "step", step)
    with pytest.raises(InputError, match="training diverged: the loss is nan at update 6; give a smaller --lr"):
        train(options)
    run = Run.open(options.out)
    assert [record["update"] for record in run.metrics() if record["kind"] == "validation"] == [4]
    assert all(torch.isfinite(tensor).all() for tensor in run.load_model(256).state_dict().values())


def test_more_than_one_process_is_refused_before_anything_is_written(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(InputError, match="2 processes were launched; training takes one"):
        train(options)
    assert not Path(options.out).exists()
