"""The command line as a user meets it. Mistakes end in one line on standard error, exit code 2, and no changed file."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from feedback_transformer_pytorch import cli, files
from feedback_transformer_pytorch.training import loop
from feedback_transformer_pytorch.training.earlier import EARLIER
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving import checkpoint
from feedback_transformer_pytorch.training.saving.run import Run
from feedback_transformer_pytorch.training.updates.trainer import Step

SMALL = [
    *("--dim=16", "--depth=2", "--heads=2", "--dim-head=8", "--seq-len=4", "--mem-len=16"),
    *("--batch-size=4", "--block-len=16", "--max-updates=4", "--warmup-updates=1"),
    *("--eval-every=2", "--log-every=1", "--eval-len=200", "--sample-len=5"),
]
COMMAND = [sys.executable, "-m", "feedback_transformer_pytorch.cli"]


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    write_text(path)
    return path


def write_text(path: Path) -> None:
    path.write_text("".join(f"{n} sheep and {n * n} goats went over the bridge.\n" for n in range(400)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder / "text.txt")
    train(folder / "text.txt", "--out", folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of four updates, to do anything with."""
    return shutil.copytree(trained, tmp_path / "run")


def train(*arguments: str | Path) -> None:
    assert cli.main(["train", *SMALL, *map(str, arguments)]) == 0


def metrics(run: Path, kind: str, name: str) -> list[float]:
    return [record[name] for record in Run.open(run).metrics() if record["kind"] == kind]


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Checks that a command is refused with one line that holds `message`, and changes nothing."""

    def check(message: str, *arguments: str | Path) -> None:
        before = snapshot(tmp_path)
        assert cli.main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("feedback-transformer: ")
        assert message in captured.err
        assert snapshot(tmp_path) == before

    return check


def test_train_eval_and_generate_work_together(text: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text.write_bytes(text.read_bytes()[:1000])
    assert cli.main(["eval", str(run), str(text), "--rows=1"]) == 0
    shown = capsys.readouterr().out
    assert "bits/byte over 1,000 bytes (xz -9: " in shown
    assert float(shown.split()[0]) < 9

    chosen = ["--prompt=7 sheep", "--max-new-tokens=20", "--temperature=0.5", "--top-k=9", "--top-p=0.9", "--seed=3"]
    written = []
    for _ in range(2):
        assert cli.main(["generate", str(run), *chosen]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]
    assert written[0].startswith("7 sheep")
    assert len(written[0]) > len("7 sheep\n")


def test_generate_streams(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(
        "builtins.print", lambda *texts, flush=False, **_: flushed.append(len(texts)) if flush else None
    )
    assert cli.main(["generate", str(run), "--max-new-tokens=20", "--prompt=ab"]) == 0
    assert len(flushed) == 2 + 20 + 1


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


def test_a_configuration_that_is_not_yaml_is_named(refuses: Callable[..., None], text: Path, tmp_path: Path) -> None:
    config = tmp_path / "notes.txt"
    config.write_text("dim: 8\n  depth: [\n")
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

    monkeypatch.setitem(cli.COMMANDS, "generate", (*cli.COMMANDS["generate"][:1], full, "continue"))
    refuses("out of memory; give a smaller --batch-size", "generate", "run")


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as raised:
        cli.main(["train", "--out=run", "--print_config", *arguments])
    assert raised.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


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


def test_more_memory_than_a_learned_position_knows_is_one_line(
    refuses: Callable[..., None], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(text, "--out", out, "--position=learned", "--adaptive-span", "--carry=state", "--stored=1", "--max-updates=1")
    assert metrics(out, "train", "mean_span") == [pytest.approx(0, abs=0.2)]
    text.write_bytes(text.read_bytes()[:1000])
    assert cli.main(["eval", str(out), str(text), "--mem-len=8"]) == 0
    capsys.readouterr()
    refuses("--mem-len is 17; the model was trained with --position learned", "eval", out, text, "--mem-len=17")


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


def test_a_tokenizer_is_learnt_and_used_from_start_to_end(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refuses: Callable[..., None]
) -> None:
    tokenizer, out = tmp_path / "tokenizer.json", tmp_path / "run"
    assert cli.main(["tokenizer", "train", str(text), "--out", str(tokenizer), "--vocab-size=300"]) == 0
    assert capsys.readouterr().out == f"{tokenizer}: 300 tokens\n"
    refuses("exists already; choose another file", "tokenizer", "train", text, "--out", tokenizer)

    train(text, "--out", out, "--tokenizer", tokenizer)
    tokenizer.unlink()
    text.write_bytes(text.read_bytes()[:1000])
    capsys.readouterr()
    assert cli.main(["eval", str(out), str(text), "--rows=1"]) == 0
    shown = capsys.readouterr().out
    assert "bits/byte over 1,000 bytes (xz -9: " in shown
    assert float(shown.split()[0]) < 8  # an untrained byte is 8 bits, and tokens are longer
    assert cli.main(["generate", str(out), "--prompt=7 sheep", "--max-new-tokens=5"]) == 0
    assert capsys.readouterr().out.startswith("7 sheep")


def test_training_starts_from_another_run(text: Path, tmp_path: Path, run: Path, refuses: Callable[..., None]) -> None:
    out, tokenizer = tmp_path / "new", tmp_path / "tokenizer.json"
    train(text, "--out", out, "--init-from", run, "--model=feedback", "--lr=1e-30")
    found, given = (Run.open(path).load_model(256).state_dict() for path in (out, run))
    torch.testing.assert_close(dict(found), dict(given))
    cli.main(["tokenizer", "train", str(text), "--out", str(tokenizer), "--vocab-size=300"])
    other = ["--out", tmp_path / "other", "--init-from", run, *SMALL]
    refuses("--init-from is ", "train", text, *other, "--tokenizer", tokenizer)
    refuses("cannot start from this FeedbackTransformer", "train", text, *other, "--model=parallel")


def test_documents_are_read_apart_if_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"body": f"{n} sheep and {n * n} goats went over the bridge.\n"}) for n in range(400)]
    documents, few = tmp_path / "documents.jsonl", tmp_path / "few.jsonl"
    documents.write_text("\n".join(lines))
    few.write_text("\n".join(lines[:10]))
    losses, shown = [], []
    for switch in ("--reset-documents", "--no-reset-documents"):
        out = tmp_path / switch
        train(documents, "--text-field=body", f"--out={out}", switch, "--lr=1e-30")
        losses.append(metrics(out, "train", "loss"))
        capsys.readouterr()
        assert cli.main(["eval", str(out), str(few), "--rows=1"]) == 0
        shown.append(capsys.readouterr().out)
    assert all(apart != together for apart, together in zip(*losses, strict=True))
    assert all("bits/byte over 426 bytes" in line for line in shown)
    assert shown[0] != shown[1]


def test_text_is_read_with_another_memory_length(text: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text.write_bytes(text.read_bytes()[:1000])
    shown = []
    for arguments in ([], ["--mem-len=16"], ["--mem-len=2"]):
        assert cli.main(["eval", str(run), str(text), *arguments]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.parametrize("x", ["update", "tokens", "seconds"])
def test_runs_are_drawn_together(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], x: str) -> None:
    other, picture = shutil.copytree(run, tmp_path / "other"), tmp_path / "runs.png"
    assert cli.main(["plot", str(run), str(other), "--out", str(picture), f"--x={x}"]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out.startswith("feedback-transformer ")


def test_text_comes_from_standard_input_and_bf16_trains(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [*COMMAND, "train", "-", "--out", str(out), *SMALL, "--precision=bf16"]
    done = subprocess.run(command, input=text.read_bytes(), capture_output=True, env=one_thread(), check=False)
    assert done.stderr == b""
    assert done.returncode == 0
    assert (out / "model.safetensors").exists()


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


def test_a_reader_that_leaves_early_is_no_error(run: Path) -> None:
    command = [*COMMAND, "generate", str(run), "--max-new-tokens=100000"]
    with subprocess.Popen(command, env=one_thread(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0
