"""Options on the command line, in files and in presets."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import SMALL, printed_config

from feedback_transformer_pytorch import cli
from feedback_transformer_pytorch.training.earlier import EARLIER
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving.run import Run


def test_what_is_written_out_wins_over_the_file_which_wins_over_the_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = printed_config(capsys, "--preset=tiny")
    assert preset["preset"] == "tiny"
    file = tmp_path / "options.yaml"
    file.write_text("dim: 48\nlr: 0.5\n")
    chosen = printed_config(capsys, "--lr=0.25", f"--config={file}", "--preset", "tiny")
    assert chosen == {**preset, "dim": 48, "lr": 0.25}

    file.write_text("preset: tiny\ndim: 48\n")
    assert printed_config(capsys, "--config", str(file)) == {**preset, "dim": 48}


def test_underscores_are_as_good_as_hyphens_and_values_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = printed_config(capsys, "--max_updates", "7", "--batch_size=3", "my_text.txt")
    assert (chosen["max_updates"], chosen["batch_size"], chosen["files"]) == (7, 3, ["my_text.txt"])


def test_the_config_of_a_run_repeats_it(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert cli.main(["train", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    assert (again / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_switch_is_turned_on_and_off_by_name_and_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("recompute: true\n")
    chosen = [
        printed_config(capsys, *arguments)["recompute"]
        for arguments in ([], ["--recompute"], [f"--config={file}"], [f"--config={file}", "--no-recompute"])
    ]
    assert chosen == [False, True, True, False]


def test_what_follows_two_dashes_is_a_file(text: Path, tmp_path: Path) -> None:
    assert cli.main(["train", "--out", str(tmp_path / "run"), *SMALL, "--", str(text)]) == 0


def test_one_file_in_a_configuration_needs_no_list(text: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"files: {text}\n")
    assert cli.main(["train", "--config", str(config), "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert Run.open(tmp_path / "run").options.files == [str(text)]


def test_the_preset_of_the_last_file_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for preset in ("tiny", "demo"):
        (tmp_path / f"{preset}.yaml").write_text(f"preset: {preset}\n")
    arguments = [f"--config={tmp_path / preset}.yaml" for preset in ("tiny", "demo")]
    assert printed_config(capsys, *arguments) == printed_config(capsys, "--preset=demo")


def test_a_list_is_given_by_name_and_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("heldout: [a.txt, b.txt]\ntrackers: [wandb]\n")
    chosen = printed_config(capsys, f"--config={file}", "--heldout", "c.txt", "--out=run")
    assert (chosen["heldout"], chosen["trackers"]) == (["c.txt"], ["wandb"])


def test_a_whole_configuration_from_before_positions_has_a_bias(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, part = tmp_path / "old.yaml", tmp_path / "part.yaml"
    options = TrainOptions(out="run").to_dict()
    old.write_text(yaml.safe_dump({name: options[name] for name in options if name not in ("out", "resume", *EARLIER)}))
    part.write_text("dim: 32\n")
    assert printed_config(capsys, f"--config={old}")["position"] == "t5"
    assert printed_config(capsys, f"--config={old}", "--position=relative")["position"] == "relative"
    assert printed_config(capsys, f"--config={part}")["position"] == "relative"
    part.write_text("position: relative\n")
    assert printed_config(capsys, f"--config={old}", f"--config={part}")["position"] == "relative"


def test_norm_memory_goes_on_working(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def chosen(*arguments: str) -> str:
        norm: str = printed_config(capsys, *arguments)["memory_norm"]
        return norm

    file = tmp_path / "options.yaml"
    file.write_text("norm_memory: false\ndim: 32\n")
    assert [chosen("--norm-memory"), chosen("--no-norm-memory"), chosen("--no-norm_memory")] == [
        "plain",
        "none",
        "none",
    ]
    assert printed_config(capsys, f"--config={file}")["dim"] == 32
    assert chosen(f"--config={file}") == "none"
    assert chosen(f"--config={file}", "--norm-memory") == "plain"
    assert chosen("--no-norm-memory", "--memory-norm=layer") == "layer"
    assert chosen("--memory-norm=layer", "--no-norm-memory") == "none"
    assert chosen(f"--config={file}", "--memory-norm=layer") == "layer"
    assert chosen("--preset=algorithmic-3") == "layer"
    assert chosen("--preset=algorithmic-3", f"--config={file}") == "none"


def test_a_wrong_norm_memory_is_one_line(refuses: Callable[..., None], tmp_path: Path, text: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("norm_memory: often\n")
    refuses("options.yaml: --norm-memory is 'often'; it must be", "train", text, "--out=new", f"--config={file}")


def test_a_layer_to_store_is_a_number_or_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert [printed_config(capsys, f"--stored={stored}")["stored"] for stored in ("mix", "top", "2")] == [
        "mix",
        "top",
        2,
    ]
