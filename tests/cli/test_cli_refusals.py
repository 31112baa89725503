"""Mistakes end in one line on standard error, exit code 2, and no changed file."""

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import SMALL

from feedback_transformer_pytorch import cli, files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr=-1"], "--lr is -1.0; it must be above 0"),
        (["--lr=fast"], "--lr: Expected float. Got value: fast"),
        (["--max-updates=1.5"], "--max-updates: Expected int. Got value: 1.5"),
        (["--kv-heads=many"], "--kv-heads: Expected int or null. Got value: many"),
        (["--precision=fp16"], "--precision: Expected one of 'fp32', 'bf16'. Got value: fp16"),
        (["--max-update=3"], "unrecognized arguments: --max-update=3"),
        (["--preset=huge"], "--preset is 'huge'; it must be algorithmic-3 or algorithmic-5 or demo or enwik8 or s3"),
        (["--block-len=10"], "--block-len is 10; it must be a multiple of --seq-len 4"),
        (["--config=nowhere.yaml"], "--config: File does not exist"),
        (["--config"], "--config: expected one argument"),
        (["--block-len=8000"], "the text has"),
        (["--recompute=1"], "argument --recompute/--no-recompute: ignored explicit argument '1'"),
        (["--trackers", "paper"], "--trackers has 'paper'; it must be one of tensorboard, wandb, trackio"),
        (["--heldout", "nowhere.txt"], "'nowhere.txt': no such file"),
        (["--tokenizer=nowhere.json"], "'nowhere.json': no such file; give bytes, or "),
        (["--init-from=nowhere"], "nowhere is not a RUN directory: there is no such directory"),
        (["--resume"], "there is no run in "),
    ],
)
def test_a_mistake_in_training_options_is_one_line(
    refuses: Callable[..., None], text: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    refuses(message, "train", text, "--out", tmp_path / "new", *SMALL, *arguments)


def test_unusable_text_is_one_line(refuses: Callable[..., None], tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short for one update" * 2)
    (tmp_path / "cut.gz").write_bytes(b"\x1f\x8b\x08")
    out = ["--out", tmp_path / "new", *SMALL]
    for name, message in {
        "missing.txt": "no such file",
        "empty.txt": "is empty",
        "short.txt": "one update takes",
        "cut.gz": "is not a complete .gz file",
        "*.md": "matches no file",
    }.items():
        refuses(message, "train", tmp_path / name, *out)
        if name != "short.txt":
            refuses(message, "eval", run, tmp_path / name)


def test_a_file_that_is_trained_on_and_held_out_is_one_line(
    refuses: Callable[..., None], text: Path, tmp_path: Path
) -> None:
    for arguments in ([text, text], [text, str(text.parent / "*.txt")], [text, "--heldout", text]):
        refuses("is given twice, and what is held out must not be", "train", "--out", tmp_path / "run", *arguments)


def test_a_configuration_that_is_not_yaml_is_named(refuses: Callable[..., None], text: Path, tmp_path: Path) -> None:
    config = tmp_path / "notes.txt"
    for content in (b"dim: 8\n  depth: [\n", b"lr: 2024-13-45\n", b"lr: !!float x\n", "lr: 0.1".encode("utf-16")):
        config.write_bytes(content)
        refuses("notes.txt is not YAML (", "train", text, "--config", config, "--out", tmp_path / "new")


def test_a_taken_place_is_one_line(refuses: Callable[..., None], text: Path, tmp_path: Path, run: Path) -> None:
    refuses(
        "already holds a run, with --seed 0, not 1; choose another --out",
        "train",
        text,
        "--out",
        run,
        *SMALL,
        "--seed=1",
    )
    refuses("is not empty and does not hold a run", "train", text, "--out", tmp_path, *SMALL)
    refuses("is a file", "train", text, "--out", text, *SMALL)
    refuses("the following arguments are required: --out", "train", text, *SMALL)


def test_what_is_no_run_is_one_line(refuses: Callable[..., None], text: Path, tmp_path: Path, run: Path) -> None:
    refuses("is not a RUN directory: it has no config.yaml", "generate", tmp_path)
    refuses("is not a RUN directory: there is no such directory", "eval", tmp_path / "nowhere", text)
    refuses("is not a RUN directory: it is a file", "eval", text, text)
    refuses("the following arguments are required: RUN", "generate")
    refuses("was trained on text; give files to measure it on", "eval", run)
    refuses("the following arguments are required: RUNS", "plot")
    refuses("the following arguments are required: ACTION, FILES", "tokenizer")
    refuses("the following arguments are required: --to", "export", run)
    refuses("the following arguments are required: --tasks, --include-path", "lm-eval", run)
    refuses("is not a RUN directory: it has no config.yaml", "plot", run, tmp_path, "--out", tmp_path / "runs.png")
    refuses("--temperature is -1.0; it must be at least 0", "generate", run, "--temperature=-1")
    refuses("--prompt is empty", "generate", run, "--prompt=")

    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuses("model.safetensors is damaged", "generate", run)
    refuses("model.safetensors is damaged", "eval", run, text)
    weights.unlink()
    refuses("has no weights yet", "generate", run)


def test_a_file_that_cannot_be_written_is_one_line_before_anything_is_computed(
    refuses: Callable[..., None], text: Path, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("evaluate", "commands", "saving.run"):
        monkeypatch.setattr(f"feedback_transformer_pytorch.training.{module}.write_atomically", None)
    for out in ("", ".", str(tmp_path), str(tmp_path / "nowhere" / "file")):
        for option, *arguments in (
            ("--json", "eval", run, text),
            ("--plot", "eval", run, text),
            ("--save-state", "generate", run),
            ("--out", "plot", run),
            ("--out", "tokenizer", "train", text),
        ):
            refuses(f"{option} is {out!r}, where no file can be; give a file in a", *arguments, f"{option}={out}")


@pytest.mark.parametrize("arguments", [[], ["paint"]])
def test_no_command_or_an_unknown_one_is_one_line(refuses: Callable[..., None], arguments: list[str]) -> None:
    refuses(
        "{train,eval,generate,plot,inspect,tokenizer,export,lm-eval}" if not arguments else "invalid choice: 'paint'",
        *arguments,
    )


def test_a_full_disk_is_one_line_and_leaves_what_was_saved(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up between the first and the second time that weights are saved."""
    out, fsync, saved = tmp_path / "new", os.fsync, []

    def full_after_the_first_checkpoint(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and (out / "checkpoints" / "00000002").exists():
            saved.append((out / "model.safetensors").read_bytes())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full_after_the_first_checkpoint)
    assert cli.main(["train", str(text), "--out", str(out), *SMALL, "--eval-every=2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "model.safetensors cannot be written: No space left on device" in error
    assert (out / "model.safetensors").read_bytes() == saved[0]
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
    ]


def test_a_missing_extra_is_one_line(
    refuses: Callable[..., None], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    refuses(
        "pip install 'feedback-transformer-pytorch[wandb]'",
        "train",
        text,
        "--out",
        tmp_path / "new",
        "--trackers",
        "wandb",
    )
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    monkeypatch.delitem(sys.modules, "feedback_transformer_pytorch.parser", raising=False)
    refuses("pip install 'feedback-transformer-pytorch[train]'", "generate", "run")


def test_a_lack_of_memory_is_one_line(refuses: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise torch.OutOfMemoryError

    for command, remedy in (("generate", ""), ("plot", ""), ("lm-eval", "; give a smaller --batch-size")):
        monkeypatch.setitem(cli.COMMANDS, command, (cli.COMMANDS[command][0], full, "fill the memory"))
        needed = ["--tasks=a", "--include-path=b"] if command == "lm-eval" else []
        refuses(f"out of memory{remedy}\n", command, "run", *needed)
