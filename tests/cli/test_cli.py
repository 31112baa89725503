"""The command line as a user meets it."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import COMMAND, SMALL, metrics, one_thread, train

from feedback_transformer_pytorch import cli
from feedback_transformer_pytorch.training.saving.run import Run


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


def test_eval_writes_only_to_the_cache_that_it_is_given(
    text: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "usual"))
    text.write_bytes(text.read_bytes()[:1000])
    found = []
    for cache in ([], [f"--cache={tmp_path / 'given'}"]):
        shutil.rmtree(tmp_path / "usual", ignore_errors=True)
        assert cli.main(["eval", str(run), str(text), "--rows=1", *cache]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    assert any(path.is_file() for path in (tmp_path / "given").rglob("*"))
    assert not (tmp_path / "usual").exists()


def test_generate_streams(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(
        "builtins.print", lambda *texts, flush=False, **_: flushed.append(len(texts)) if flush else None
    )
    assert cli.main(["generate", str(run), "--max-new-tokens=20", "--prompt=ab"]) == 0
    assert len(flushed) == 2 + 20 + 1


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


def test_a_tokenizer_is_learned_and_used_from_start_to_end(
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


def test_a_reader_that_leaves_early_is_no_error(run: Path) -> None:
    command = [*COMMAND, "generate", str(run), "--max-new-tokens=100000"]
    with subprocess.Popen(command, env=one_thread(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0
