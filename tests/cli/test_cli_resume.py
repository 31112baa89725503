"""Runs that were stopped are resumed, and runs that are done are left alone."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import COMMAND, SMALL, metrics, one_thread, snapshot, train

from feedback_transformer_pytorch import cli
from feedback_transformer_pytorch.training import loop
from feedback_transformer_pytorch.training.earlier import EARLIER
from feedback_transformer_pytorch.training.saving import checkpoint
from feedback_transformer_pytorch.training.updates.trainer import Step


def test_a_run_that_was_stopped_is_resumed_by_its_place_alone(
    text: Path, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, step = tmp_path / "stopped", loop.Trainer.step

    def step_with_signal(self: loop.Trainer) -> Step:
        if self.update == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", step_with_signal)
        assert cli.main(["train", str(text), "--out", str(stopped), *SMALL]) == 128 + signal.SIGTERM
    shown = capsys.readouterr().out
    assert f"to resume: feedback-transformer train --resume --out {stopped}\n" in shown
    assert cli.main(["train", "--resume", "--out", str(stopped)]) == 0
    assert f"resuming from {stopped}/checkpoints/00000003\n" in capsys.readouterr().out
    assert metrics(stopped, "train", "loss") == metrics(run, "train", "loss")
    assert (stopped / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_run_without_its_checkpoints_is_left_alone(
    refuses: Callable[..., None], text: Path, tmp_path: Path, run: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    before = snapshot(copy)
    for arguments in (["--resume", "--out", copy], [text, "--out", copy, *SMALL]):
        refuses("was trained for 4 updates, but its checkpoints are gone", "train", *arguments)
    assert snapshot(copy) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, run: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    lines = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines, 1) if b'"validation"' in line)
    (copy / "metrics.jsonl").write_bytes(b"".join(lines[:first]) + b'{"kind": "tr')
    assert cli.main(["train", "--resume", "--out", str(copy)]) == 0
    assert (copy / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_weights_to_start_from_are_for_a_new_run(
    refuses: Callable[..., None], text: Path, tmp_path: Path, run: Path
) -> None:
    refuses("has been trained already; leave it out", "train", text, *SMALL, "--out", run, "--init-from", run)
    warm = tmp_path / "warm"
    train(text, "--out", warm, "--init-from", run)
    refuses("has been trained already; leave it out", "train", text, *SMALL, "--out", warm, "--init-from", warm)
    train(text, "--out", warm, "--init-from", run)


def test_ctrl_c_in_a_pipe_saves_the_weights_too(text: Path, tmp_path: Path) -> None:
    """A terminal stops `tee` as well, so that the last lines have no reader."""
    out = tmp_path / "run"
    command = [*COMMAND, "train", str(text), "--out", str(out), *SMALL, "--max-updates=1000000", "--eval-every=1000000"]
    with subprocess.Popen(command, env=one_thread(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith(b"update 3/"):
            pass
        process.stdout.close()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert cli.main(["generate", str(out), "--max-new-tokens=1"]) == 0


def test_ctrl_c_saves_the_weights(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [*COMMAND, "train", str(text), "--out", str(out), *SMALL, "--max-updates=1000000", "--eval-every=1000000"]
    with subprocess.Popen(
        command, env=one_thread(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("update 3/"):
                process.send_signal(signal.SIGINT)
                break
        shown, error = process.communicate(timeout=60)
    assert error == ""
    assert process.returncode == 130
    assert "stopped by SIGINT after update" in shown
    assert cli.main(["generate", str(out), "--max-new-tokens=1"]) == 0


def test_a_run_that_is_done_says_so_when_it_is_resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(run)
    assert cli.main(["train", "--resume", "--out", str(run)]) == 0
    assert capsys.readouterr().out.endswith(
        f"{run} is done (4 updates); choose another --out for a new run; with --config {run}/config.yaml "
        f"--init-from {run} it starts from these weights\n"
    )
    further = run.parent / "further"
    options = ["--config", str(run / "config.yaml"), "--init-from", str(run), "--max-updates=1"]
    assert cli.main(["train", *options, "--out", str(further)]) == 0
    assert snapshot(run) == before


def test_another_option_than_the_runs_is_one_line(refuses: Callable[..., None], run: Path, tmp_path: Path) -> None:
    refuses("already holds a run, with --lr 0.002, not 0.5", "train", "--resume", "--out", run, "--lr=0.5")
    refuses("already holds a run, with --recompute False, not True", "train", "--resume", "--out", run, "--recompute")
    refuses("there is no run in ", "train", "--resume", "--out", tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_one_line(refuses: Callable[..., None], run: Path) -> None:
    path = run / "checkpoints" / "00000004" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuses("00000004/optimizer.safetensors is damaged", "train", "--resume", "--out", run)


def test_a_run_from_before_positions_is_resumed_with_its_bias(text: Path, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    options = [*SMALL, "--position=t5"]
    train(text, "--out", whole, *options)
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints" / "00000004")
    as_before_positions(half)
    assert cli.main(["train", "--resume", "--out", str(half)]) == 0
    assert (half / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def as_before_positions(run: Path) -> None:
    """Leaves out what a version without `position` did not write, and gives `norm_memory` its name back."""

    def before(options: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in options.items() if name not in EARLIER}
        return {**kept, "norm_memory": options["memory_norm"] == "plain"}

    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(before(config)))
    for folder in (run / "checkpoints").iterdir():
        state, manifest = (json.loads((folder / name).read_text()) for name in ("state.json", "manifest.json"))
        state["options"] = before(state["options"])
        content = checkpoint._json(state)
        manifest["files"]["state.json"] = checkpoint._entry(content)
        (folder / "state.json").write_bytes(content)
        (folder / "manifest.json").write_bytes(checkpoint._json(manifest))
