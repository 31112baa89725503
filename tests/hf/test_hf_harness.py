"""The tasks of tests/hf/lm_eval_tasks under lm-evaluation-harness; their figures are computed by hand too."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from test_hf_export import make_run, make_text, model_of

from feedback_transformer_pytorch import FeedbackTransformer, cli, generate
from feedback_transformer_pytorch.data import train_bpe

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[lm-eval]'")

from feedback_transformer_pytorch.hf.harness import _with_end_of_text
from feedback_transformer_pytorch.hf.tokenizer import as_pretrained

TASKS = Path(__file__).parent / "lm_eval_tasks"
DOCUMENTS = [json.loads(line) for line in (TASKS / "sheep.jsonl").read_text().splitlines()]

# The harness and the libraries it loads warn of what they do themselves.
pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:(lm_eval|datasets|transformers|sacrebleu|evaluate)\..*")


@pytest.fixture(autouse=True)
def _where_the_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TASKS)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@torch.no_grad()
def log_likelihood(model: FeedbackTransformer, before: str, text: str) -> float:
    """Of the bytes of a text behind others, in nats. The last byte is read too, so that none before it is a last one,
    which would have no local key where it begins a segment."""
    given, target = before.encode(), text.encode()
    tokens = torch.tensor([list(given + target)])
    log_probabilities = model(tokens)[:, :-1].log_softmax(-1)
    of_each = log_probabilities.gather(2, tokens[:, 1:, None])[0, len(given) - 1 :]
    return of_each.sum().item()


def test_figures_are_those_computed_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "figures.json"
    arguments = ["--include-path", str(TASKS), "--batch-size", "4", "--out", str(out)]
    assert cli.main(["lm-eval", str(run.path), "--tasks", "sheep_choice", "sheep_text", *arguments]) == 0
    printed, figures = capsys.readouterr().out, json.loads(out.read_text())["results"]
    model = model_of(run).eval()
    right = []
    for document in DOCUMENTS:
        scores = [log_likelihood(model, document["text"], f" {choice}") for choice in document["choices"]]
        right.append(scores.index(max(scores)) == document["answer"])
    assert 0 < sum(right) < len(right)
    assert figures["sheep_choice"]["acc,none"] == sum(right) / len(right)
    nats = -sum(log_likelihood(model, "\n", document["text"]) for document in DOCUMENTS)
    size = sum(len(document["text"].encode()) for document in DOCUMENTS)
    assert figures["sheep_text"]["bits_per_byte,none"] == pytest.approx(nats / size / math.log(2), rel=1e-5)
    assert "|sheep_choice|" in printed.replace(" ", "")


def test_a_tokenizer_with_special_tokens_gets_no_other(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(train_bpe([str(make_text(tmp_path))], 300).to_json())
    known = backend.get_vocab_size()
    backend.add_special_tokens(["<|eot|>"])
    tokenizer = _with_end_of_text(as_pretrained(backend))
    assert (len(tokenizer), tokenizer.eos_token) == (known + 1, "<|eot|>")
    assert max(tokenizer.encode("<|endoftext|>")) < known


def test_a_limit_takes_the_first_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "figures.json"
    arguments = ["--tasks", "sheep_text", "--include-path", str(TASKS), "--limit", "2", "--out", str(out)]
    assert cli.main(["lm-eval", str(run.path), *arguments]) == 0
    capsys.readouterr()
    model = model_of(run).eval()
    nats = -sum(log_likelihood(model, "\n", document["text"]) for document in DOCUMENTS[:2])
    size = sum(len(document["text"].encode()) for document in DOCUMENTS[:2])
    figures = json.loads(out.read_text())["results"]
    assert figures["sheep_text"]["bits_per_byte,none"] == pytest.approx(nats / size / math.log(2), rel=1e-5)


def test_what_is_written_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    arguments = ["--tasks", "sheep_write", "--include-path", str(TASKS)]
    assert cli.main(["lm-eval", str(run.path), *arguments]) == 0
    model = model_of(run).eval()
    right = []
    for document in DOCUMENTS:
        prompt = torch.tensor([list(document["text"].encode())])
        written = bytes(int(token) for token in generate(model, prompt, max_new_tokens=9, temperature=0))
        right.append(written.decode(errors="replace").split("\n")[0] == document["choices"][document["answer"]])
    assert f"|exact_match|↑|{sum(right) / len(right):g}|" in capsys.readouterr().out.replace(" ", "")


@pytest.mark.parametrize(
    ("task", "folder", "message"),
    [
        ("arc_easy", str(TASKS), "--tasks names 'arc_easy', which is not in --include-path"),
        ("sheep_text", "nowhere", "--include-path is nowhere, which is no directory"),
    ],
)
def test_an_unknown_task_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, folder: str, message: str
) -> None:
    run = make_run(tmp_path / "run")
    assert cli.main(["lm-eval", str(run.path), "--tasks", task, "--include-path", folder]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_files_beside_tasks_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert cli.main(["lm-eval", str(run.path), "--tasks", "sheep", "--include-path", str(run.path)]) == 2
    assert "--tasks names 'sheep', which is not in --include-path" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["nowhere/figures.json", "."])
def test_a_place_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    run = make_run(tmp_path / "run")
    arguments = ["--tasks", "no-task", "--include-path", str(TASKS), "--out", out]
    assert cli.main(["lm-eval", str(run.path), *arguments]) == 2
    assert f"--out is {str(out)!r}, where no file can be" in capsys.readouterr().err


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    """In a process of its own, where the libraries are imported by the command."""
    run = make_run(tmp_path / "run")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment["HF_HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-m", "feedback_transformer_pytorch.cli", "lm-eval", str(run.path)]
    command += ["--tasks", "from_the_hub", "--include-path", str(TASKS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--tasks from_the_hub cannot be loaded, and nothing is downloaded" in done.stderr
    assert "its data_files must be on this machine" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "feedback_transformer_pytorch.hf.harness", raising=False)
    assert cli.main(["lm-eval", "run", "--tasks", "sheep", "--include-path", "."]) == 2
    error = capsys.readouterr().err
    assert "lm_eval is not installed; it comes with the 'lm-eval' extra" in error
    assert error.count("\n") == 1
