import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from feedback_transformer_pytorch.data import train_bpe
from feedback_transformer_pytorch.errors import DivergedError, InputError
from feedback_transformer_pytorch.training import loop
from feedback_transformer_pytorch.training.evaluation.validation import TextValidation
from feedback_transformer_pytorch.training.evaluation.xz import XzError, XzFigures
from feedback_transformer_pytorch.training.loop import Outcome, train
from feedback_transformer_pytorch.training.options import Model, TrainOptions
from feedback_transformer_pytorch.training.saving.lock import locked
from feedback_transformer_pytorch.training.saving.run import Run
from feedback_transformer_pytorch.training.updates.trainer import Step

TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes"}


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; test_plots.py and tests/cli draw."""
    monkeypatch.setattr(loop, "curves_png", lambda *_, **__: b"")


def metrics(path: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """All that does not depend on the machine."""
    records = Run.open(path).metrics()
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records if kind in (None, record["kind"])]


def stop_after(update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal comes while this update is made."""
    original = loop.Trainer.step

    def step(self: loop.Trainer) -> Step:
        step = original(self)
        if step.update == update:
            signal.raise_signal(signal.SIGTERM)
        return step

    monkeypatch.setattr(loop.Trainer, "step", step)


def skip(updates: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of these updates is not finite."""
    original = loop.Trainer.step

    def step(self: loop.Trainer) -> Step:
        step = original(self)
        return dataclasses.replace(step, loss=torch.nan, skipped=True) if step.update in updates else step

    monkeypatch.setattr(loop.Trainer, "step", step)


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
        ".lock",
        "checkpoints",
        "config.yaml",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
    ]
    assert run.checkpoints.updates() == [4, 6]
    shown = capsys.readouterr().out
    assert "update 6/6  held-out" in shown
    assert "alone" in shown
    assert "after the training text" in shown
    assert "sample:" in shown


def test_a_run_goes_on_without_the_figures_of_xz(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: TextValidation) -> XzFigures:
        raise XzError("xz -9 ended with code -9")

    monkeypatch.setattr(TextValidation, "reference", fail)
    assert train(options) == Outcome(6, None)
    assert "no figures of xz to compare with: xz -9 ended with code -9; it needs 0.7 GB" in capsys.readouterr().out
    assert metrics(options.out, "xz") == []


def test_a_line_of_metrics_says_how_far_training_is(options: TrainOptions) -> None:
    train(options)
    records = [record for record in Run.open(options.out).metrics() if record["kind"] == "train"]
    assert list(records[0]) == [
        *("kind", "update", "tokens", "seconds", "loss", "bits_per_byte", "grad_norm", "lr"),
        *("block_len", "tokens_per_second", "peak_memory_bytes", "skipped", "layer_weights"),
    ]
    assert [record["tokens"] for record in records] == [128, 256, 384]
    assert sorted(record["seconds"] for record in records) == [record["seconds"] for record in records]
    assert [len(record["layer_weights"]) for record in records] == [3, 3, 3]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(options: TrainOptions, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("first", "again", "other")]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        train(dataclasses.replace(options, out=str(out), seed=seed))
    first, again, other = map(metrics, outs)
    assert first == again
    assert first != other
    assert (outs[0] / "model.safetensors").read_bytes() == (outs[1] / "model.safetensors").read_bytes()


def test_validation_does_not_change_what_is_learnt(options: TrainOptions, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("often", "once")]
    for out, eval_every in zip(outs, (1, 6), strict=True):
        train(dataclasses.replace(options, out=str(out), eval_every=eval_every, log_every=1))
    losses = [[record["loss"] for record in metrics(out, "train")] for out in outs]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("moment", ["step", "measure", "sample"])
def test_a_stop_saves_the_weights_of_the_last_update(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    """Between updates, while validating, and while writing a sample."""
    owner = loop.Trainer if moment == "step" else TextValidation
    original = getattr(owner, moment)

    def interrupted(self: Any, *arguments: Any) -> Any:
        if moment != "step" or self.update == 4:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(owner, moment, interrupted)
    last = 5 if moment == "step" else 4
    assert train(options) == Outcome(last, signal.SIGTERM)
    run = Run.open(options.out)
    weights = run.load_model(256).state_dict()
    assert run.checkpoints.updates()[-1] == last
    torch.testing.assert_close(dict(run.checkpoints.load(last).model), dict(weights), rtol=0, atol=0)
    shown = capsys.readouterr().out
    assert shown.splitlines()[-3:] == [
        f"stopped by SIGTERM after update {last} of 6",
        f"to resume: feedback-transformer train --resume --out {options.out}",
        f"to use these weights: feedback-transformer generate {options.out}",
    ]


@pytest.mark.parametrize("moment", ["measure", "sample"])
def test_the_time_of_a_validation_that_was_stopped_is_not_training(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    clock, original, late = time.perf_counter, getattr(TextValidation, moment), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal late
        late += 1000
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late)
    monkeypatch.setattr(TextValidation, moment, interrupted)
    assert train(options) == Outcome(4, signal.SIGTERM)
    assert Run.open(options.out).checkpoints.load(4).state["meter"]["seconds"] < 1000


@pytest.mark.parametrize("model", ["feedback", "transformer-xl"])
@pytest.mark.parametrize("update", [1, 3, 5])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model, update: int
) -> None:
    options = dataclasses.replace(options, model=model, first_block_len=8, curriculum_updates=2)
    whole = dataclasses.replace(options, out=str(tmp_path / "whole"))
    train(whole)
    with monkeypatch.context() as patch:
        stop_after(update, patch)
        train(options)
    assert train(options) == Outcome(6, None)
    assert metrics(options.out) == metrics(whole.out)
    for name in ("model.safetensors", "checkpoints/00000006/optimizer.safetensors"):
        assert (Path(options.out) / name).read_bytes() == (Path(whole.out) / name).read_bytes()


@pytest.mark.parametrize("moment", ["measure", "sample"])
@pytest.mark.parametrize("eval_every", [4, 6])
def test_a_validation_that_was_stopped_is_made_up_for(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, eval_every: int
) -> None:
    options = dataclasses.replace(options, eval_every=eval_every)
    whole = dataclasses.replace(options, out=str(tmp_path / "whole"))
    train(whole)
    original = getattr(TextValidation, moment)

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TextValidation, moment, interrupted)
        assert train(options).stopped_by == signal.SIGTERM
    assert train(options) == Outcome(6, None)
    assert metrics(options.out) == metrics(whole.out)


def test_the_best_checkpoint_is_kept(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([3.0, 2.0, 4.0, 5.0, 2.0, 6.0])
    monkeypatch.setattr(TextValidation, "measure", lambda *_: {"bits_per_byte": next(figures)})
    train(dataclasses.replace(options, eval_every=1, keep=1))
    assert Run.open(options.out).checkpoints.updates() == [2, 6]


def test_the_newest_checkpoint_that_is_there_is_gone_on_from(
    options: TrainOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    train(options)
    run = Run.open(options.out)
    before = metrics(options.out)
    run.checkpoints.keep({4})
    capsys.readouterr()
    assert train(options) == Outcome(6, None)
    assert f"resuming from {run.path}/checkpoints/00000004\nupdate 6/6" in capsys.readouterr().out
    assert metrics(options.out) == before


def test_a_run_that_goes_on_with_another_walk_says_so(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        train(dataclasses.replace(options, implementation="stepwise"))
    capsys.readouterr()
    monkeypatch.setattr(loop.Trainer, "walk", lambda trainer: "torch operations")
    train(dataclasses.replace(options, implementation="stepwise"))
    folder = f"{options.out}/checkpoints/00000003"
    assert (
        f"resuming from {folder}\n{folder} was computed with the definition, and this run uses torch operations: "
        "from here on, results are the same up to rounding, not bit for bit\n"
    ) in capsys.readouterr().out


def test_a_run_that_is_done_says_so_and_stays_as_it_is(
    options: TrainOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    train(options)
    before = {path: path.read_bytes() for path in Path(options.out).rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(options) == Outcome(6, None)
    assert f"{options.out} is done (6 updates); choose another --out for a new run" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in Path(options.out).rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_that_another_process_trains_is_left_alone(options: TrainOptions, resumed: bool) -> None:
    if resumed:
        train(options)
    part = Path(options.out) / "model.safetensors.part"
    with locked(part.parent):
        if resumed:
            part.write_bytes(b"half")
        before = {path: path.read_bytes() for path in part.parent.rglob("*") if path.is_file()}
        with pytest.raises(InputError, match="run is being trained by another process"):
            train(options)
        assert {path: path.read_bytes() for path in part.parent.rglob("*") if path.is_file()} == before
    assert train(options) == Outcome(6, None)


def test_another_text_is_refused_when_a_run_goes_on(options: TrainOptions) -> None:
    train(options)
    text = Path(options.files[0])
    text.write_text(text.read_text() + "more")
    with pytest.raises(InputError, match="text.txt is not what .*00000006 was trained with: its fingerprint is"):
        train(options)


def test_a_run_without_a_checkpoint_starts_over_with_what_it_is_given(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataclasses.replace(options, max_skipped=1)
    with monkeypatch.context() as patch:
        skip({1, 2}, patch)
        with pytest.raises(DivergedError, match="there is no checkpoint"):
            train(options)
    other = tmp_path / "other.txt"
    other.write_text(Path(options.files[0]).read_text().replace("e", "a"))
    given = dataclasses.replace(options, files=[str(other)])
    capsys.readouterr()
    assert train(given) == Outcome(6, None)
    assert f"{options.out} has no checkpoint: training starts from the beginning" in capsys.readouterr().out
    assert Run.open(options.out).options == given
    assert train(dataclasses.replace(given, resume=True)) == Outcome(6, None)


def test_another_tokenizer_is_refused_when_a_run_goes_on(options: TrainOptions, tmp_path: Path) -> None:
    train(options)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(train_bpe(options.files, 300).to_json())
    with pytest.raises(InputError, match="--tokenizer is .*, which is not the tokenizer of the run in"):
        train(dataclasses.replace(options, tokenizer=str(tokenizer)))


def test_updates_that_are_not_finite_are_skipped_and_counted(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip({2, 3}, monkeypatch)
    assert train(dataclasses.replace(options, max_skipped=2)) == Outcome(6, None)
    assert [(record["update"], record["skipped"]) for record in metrics(options.out, "train")] == [
        (2, 1),
        (4, 2),
        (6, 2),
    ]
    assert all(json.dumps(record).find("NaN") < 0 for record in metrics(options.out))
    assert "left  2 skipped\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("eval_every", "good"), [(4, "the last checkpoint is .*checkpoints/00000004"), (6, "there is no checkpoint")]
)
def test_too_many_skipped_updates_end_the_run(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, eval_every: int, good: str
) -> None:
    skip({3, 4, 5}, monkeypatch)
    message = (
        f"not finite at 3 updates in a row, the last one 5 \\(loss nan\\); {good}; train a new run with a smaller --lr"
    )
    with pytest.raises(DivergedError, match=message):
        train(dataclasses.replace(options, max_skipped=2, eval_every=eval_every))


def test_a_run_starts_from_the_weights_of_another(options: TrainOptions, tmp_path: Path) -> None:
    source = dataclasses.replace(options, model="parallel", out=str(tmp_path / "source"))
    train(source)
    train(dataclasses.replace(options, init_from=source.out, lr=1e-30))
    found, given = (Run.open(out).load_model(256).token_emb.weight for out in (options.out, source.out))
    torch.testing.assert_close(found, given)


def test_held_out_text_may_be_given(options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heldout = tmp_path / "heldout.txt"
    heldout.write_text("Twelve sheep went over another bridge.\n" * 3)
    train(dataclasses.replace(options, heldout=[str(heldout)]))
    size = Path(options.files[0]).stat().st_size
    assert f"text.txt: {size:,} bytes to train on, {heldout.stat().st_size} held out; " in capsys.readouterr().out
