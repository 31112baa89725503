"""Training and evaluation on labels, from the options to the figures."""

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feedback_transformer_pytorch.data import GeneratedSequences, Vocabulary
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.tasks import SequenceTask, find_task
from feedback_transformer_pytorch.training import evaluate, loop
from feedback_transformer_pytorch.training.datasets import labelled
from feedback_transformer_pytorch.training.datasets.labelled import (
    TEST_SEED,
    VALIDATION_SEED,
    labelled_dataset,
    sequences_of,
)
from feedback_transformer_pytorch.training.evaluate import evaluate_run
from feedback_transformer_pytorch.training.evaluation.validation import stream_lead
from feedback_transformer_pytorch.training.evaluation.xz import XzError
from feedback_transformer_pytorch.training.loop import Outcome, train
from feedback_transformer_pytorch.training.models.architectures import build_model
from feedback_transformer_pytorch.training.options import EvalOptions, TrainOptions
from feedback_transformer_pytorch.training.processes import Processes
from feedback_transformer_pytorch.training.saving.run import Run
from feedback_transformer_pytorch.training.updates.trainer import Step, Trainer


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "curves_png", lambda *_, **__: b"")


@pytest.fixture
def parity(options: TrainOptions) -> TrainOptions:
    """A task, for a few updates."""
    return dataclasses.replace(options, files=[], task="z2", seq_len=1, block_len=12, mastery=None)


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., str]:
    """Writes sequences of 1 to 12 letters; the label of every second letter is the letter before."""

    def write(name: str = "data.jsonl", count: int = 60, letters: str = "abc") -> str:
        rng = np.random.default_rng(0)
        path = tmp_path / name
        with path.open("w") as file:
            for _ in range(count):
                tokens = rng.choice(list(letters), rng.integers(2, 13)).tolist()
                labels = [tokens[place - 1] if place % 2 else None for place in range(len(tokens))]
                file.write(json.dumps({"tokens": tokens, "labels": labels}) + "\n")
        return str(path)

    return write


def metrics(path: str | Path, kind: str) -> list[dict[str, Any]]:
    times = {"seconds", "tokens_per_second", "peak_memory_bytes"}
    records = [record for record in Run.open(path).metrics() if record["kind"] == kind]
    return [{name: value for name, value in record.items() if name not in times} for record in records]


def stop_after(update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.step

    def step(self: Trainer) -> Step:
        step = original(self)
        if step.update == update:
            signal.raise_signal(signal.SIGTERM)
        return step

    monkeypatch.setattr(Trainer, "step", step)


def test_a_run_on_a_task_leaves_accuracies_and_its_words(
    parity: TrainOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(parity) == Outcome(6, None)
    run = Run.open(parity.out)
    assert run.vocabulary().words == find_task("z2").words
    assert metrics(parity.out, "xz") == []
    for record in metrics(parity.out, "train") + metrics(parity.out, "validation"):
        assert 0 <= record["accuracy"] <= 1
        assert 0 <= record["accuracy_last"] <= 1
        assert record["loss"] > 0
    assert run.validated().keys() == {4, 6}
    shown = capsys.readouterr().out
    assert "task z2: 16 sequences of 12 held out; 2 words; " in shown
    assert "% right" in shown


def test_a_feedback_model_learns_parity(parity: TrainOptions) -> None:
    options = dataclasses.replace(
        parity, mem_len=8, dim=32, batch_size=32, max_updates=150, lr=3e-3, dropout=0.0, eval_every=150, eval_len=1200
    )
    train(options)
    assert Run.open(options.out).validated()[150] > 0.99
    found = evaluate_run(EvalOptions(run=options.out, length=48, sequences=50))
    assert found.to_dict()["accuracy"] > 0.95
    assert len(found.to_dict()["by_position"]) == 48


@pytest.mark.parametrize("model", ["feedback", "transformer-xl", "parallel"])
@pytest.mark.parametrize("kind", ["task", "curriculum", "mastery", "sequences", "stream"])
def test_a_run_on_labels_resumes_exactly(
    parity: TrainOptions,
    lines: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    model: Any,
) -> None:
    changes: dict[str, Any] = {
        "task": {},
        "curriculum": {"first_block_len": 3, "curriculum_updates": 4},
        "mastery": {"first_block_len": 2, "mastery": 0.05},
        "sequences": {"task": None, "labelled": "sequences", "files": [lines()]},
        "stream": {"task": None, "labelled": "stream", "files": [lines()]},
    }[kind]
    options = dataclasses.replace(parity, model=model, log_every=1, **changes)
    whole = dataclasses.replace(options, out=str(tmp_path / "whole"))
    train(whole)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert train(options).update == 3
    assert train(options) == Outcome(6, None)
    for of_kind in ("train", "validation"):
        assert metrics(options.out, of_kind) == metrics(whole.out, of_kind)
    for name in ("model.safetensors", "checkpoints/00000006/optimizer.safetensors"):
        assert (Path(options.out) / name).read_bytes() == (Path(whole.out) / name).read_bytes()
    if kind in ("curriculum", "mastery"):
        lengths = [record["block_len"] for record in metrics(options.out, "train")]
        assert sorted(lengths) == lengths
        assert lengths[0] < lengths[-1]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_groups_learn_what_all_rows_together_do(parity: TrainOptions, processes: Processes, accumulate: int) -> None:
    """Although they have different numbers of labels."""

    def trainer(options: TrainOptions) -> Trainer:
        torch.manual_seed(0)
        dataset = labelled_dataset(options, None, processes)
        model = build_model(options, dataset.tokens.num_tokens)
        return Trainer(options, model, dataset.blocks, dataset.objective, processes)

    options = dataclasses.replace(parity, task="copy", dropout=0.0, block_len=24)
    whole, grouped = trainer(options), trainer(dataclasses.replace(options, accumulate=accumulate))
    for _ in range(4):
        expected, found = whole.step(), grouped.step()
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
        assert found.metrics == pytest.approx(expected.metrics)
    assert whole.memories is None


def test_the_loss_does_not_depend_on_labels_that_do_not_count(
    parity: TrainOptions, lines: Callable[..., str], processes: Processes
) -> None:
    options = dataclasses.replace(parity, task=None, labelled="sequences", files=[lines()])
    dataset = labelled_dataset(options, None, processes)
    block = dataset.blocks.block(0)
    assert 0 < dataset.objective.mask(block.targets).sum() < block.targets.numel()
    assert dataset.tokens.words == ("a", "b", "c")
    assert "57 sequences to train on, 3 held out; 3 words" in dataset.summary


def test_files_to_hold_out_may_be_given(parity: TrainOptions, lines: Callable[..., str], processes: Processes) -> None:
    options = dataclasses.replace(
        parity, task=None, labelled="sequences", files=[lines()], heldout=[lines("heldout.jsonl", 7, "cd")]
    )
    dataset = labelled_dataset(options, None, processes)
    assert dataset.tokens.words == ("a", "b", "c", "d")
    assert "60 sequences to train on, 7 held out" in dataset.summary


def test_no_update_has_the_sequences_that_are_held_out() -> None:
    task = find_task("s3")
    assert isinstance(task, SequenceTask)
    heldout, test = (sequences_of(task, 1, 8, seed) for seed in (VALIDATION_SEED, TEST_SEED))
    assert not np.array_equal(heldout[0].tokens, test[0].tokens)
    for seed in range(3):
        blocks = GeneratedSequences(task, batch_size=1, length=lambda _: 8, seed=seed)
        for update in (0, 1, 2, 256, 512):
            inputs = blocks.block(update).inputs[0].numpy()
            assert not np.array_equal(inputs, heldout[0].tokens)
            assert not np.array_equal(inputs, test[0].tokens)


def test_other_data_does_not_resume_a_run(parity: TrainOptions, lines: Callable[..., str]) -> None:
    options = dataclasses.replace(parity, task=None, labelled="sequences", files=[lines()])
    train(dataclasses.replace(options, max_updates=4))
    lines(count=61)
    with pytest.raises(InputError, match="is not what .* was trained with: its fingerprint"):
        train(dataclasses.replace(options, max_updates=4))


def test_a_task_that_another_version_made_does_not_resume_a_run(
    parity: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(parity)
    remedy = "with: its fingerprint is .*; resume with the version of the package that began the run"
    monkeypatch.setattr(labelled, "fingerprint", lambda *_: "e" * 64)
    with pytest.raises(InputError, match=f"^task z2 is not what .* {remedy}"):
        train(parity)
    monkeypatch.setattr(Vocabulary, "fingerprint", "a" * 64)
    with pytest.raises(InputError, match=f"^the vocabulary of task z2 is not what .* {remedy}"):
        train(parity)


def test_labels_of_files_are_evaluated(parity: TrainOptions, lines: Callable[..., str], tmp_path: Path) -> None:
    options = dataclasses.replace(parity, task=None, labelled="sequences", files=[lines()])
    train(options)
    picture, figures = tmp_path / "accuracy.png", tmp_path / "figures.json"
    other = lines("test.jsonl", 9)
    found = evaluate_run(EvalOptions(run=options.out, files=[other], plot=str(picture), json=str(figures)))
    assert str(found).endswith(f"nats ({other})")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(figures.read_text()) == found.to_dict()
    with pytest.raises(InputError, match="test.jsonl', line 1 has '.', which the model was not trained with"):
        evaluate_run(EvalOptions(run=options.out, files=[lines("test.jsonl", 9, "xy")]))
    with pytest.raises(InputError, match="was trained on files; give files to measure it on, or a --task"):
        evaluate_run(EvalOptions(run=options.out))
    for name, why in (
        ("length", "files are given; leave it out"),
        ("sequences", "files are given; leave it out"),
        ("rows", "the data are sequences, each read from start to end; leave it out"),
    ):
        with pytest.raises(InputError, match=f"--{name} is 3, but {why}"):
            evaluate_run(EvalOptions(run=options.out, files=options.files, **{name: 3}))


def test_a_stream_is_evaluated_from_start_to_end_or_in_rows(
    parity: TrainOptions, lines: Callable[..., str], tmp_path: Path
) -> None:
    options = dataclasses.replace(parity, task=None, labelled="stream", files=[lines()])
    train(options)
    for record in Run.open(options.out).metrics():
        assert "accuracy" in record
        assert "accuracy_last" not in record  # a row is a part of a stream
    test = lines("test.jsonl", 100)
    picture = tmp_path / "accuracy.png"
    exact, parts = (
        evaluate_run(EvalOptions(run=options.out, files=[test], rows=rows, plot=str(picture))).to_dict()
        for rows in (1, 3)
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert exact["accuracy_last"] is None
    for figures in (exact, parts):  # at every second position of a line, and lines have 2 to 12
        assert [share is None for share in figures["by_position"]] == [True, False] * 6
    assert exact["labels"] - parts["labels"] in range(4)
    assert parts["loss"] == pytest.approx(exact["loss"], rel=1e-2)


def test_a_task_that_is_one_stream_has_no_positions_to_plot(parity: TrainOptions) -> None:
    options = dataclasses.replace(parity, task="algorithmic-3")
    Run.create(options, Vocabulary(find_task("algorithmic-3").words))
    message = "--plot is 'a.png', but task 'algorithmic-3' is one stream without positions; leave it out, or give files"
    with pytest.raises(InputError, match=message):
        evaluate_run(EvalOptions(run=options.out, plot="a.png"))


def test_a_stream_whose_rows_leave_out_its_only_label_is_read_in_one(parity: TrainOptions, tmp_path: Path) -> None:
    options = dataclasses.replace(parity, task=None, labelled="stream", files=[str(tmp_path / "train.jsonl")])
    line = json.dumps({"tokens": ["0", "1"] * 150, "labels": ["0", "1"] * 150})
    (tmp_path / "train.jsonl").write_text(f"{line}\n" * 2)
    train(options)
    test = tmp_path / "test.jsonl"
    count = 3 * stream_lead(options.mem_len) + 1  # after the lead, an odd number: two rows leave out the last token
    test.write_text(json.dumps({"tokens": ["0"] * count, "labels": [None] * (count - 1) + ["0"]}))
    with pytest.raises(InputError, match="--rows is 2, and no label is at a position that is then counted"):
        evaluate_run(EvalOptions(run=options.out, files=[str(test)], rows=2))
    assert evaluate_run(EvalOptions(run=options.out, files=[str(test)], rows=1)).to_dict()["labels"] == 1


def test_a_task_is_evaluated_with_its_own_words_only(parity: TrainOptions) -> None:
    train(parity)
    found = evaluate_run(EvalOptions(run=parity.out, length=5, sequences=7)).to_dict()
    assert found["data"] == "7 sequences of task z2, length 5"
    assert found["labels"] == 35
    with pytest.raises(InputError, match="--task is 's3', whose words are not those that"):
        evaluate_run(EvalOptions(run=parity.out, task="s3"))
    with pytest.raises(InputError, match="--rows is 2, but the data are sequences"):
        evaluate_run(EvalOptions(run=parity.out, rows=2))


def test_a_run_on_labels_has_no_text_to_write(parity: TrainOptions) -> None:
    train(parity)
    with pytest.raises(InputError, match="was trained on labels and has no tokenizer"):
        Run.open(parity.out).tokenizer()


def test_a_text_is_evaluated_without_xz_if_that_fails(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> float:
        raise XzError

    monkeypatch.setattr(evaluate, "xz_bits_per_byte", fail)
    train(options)
    found = evaluate.evaluate_run(EvalOptions(run=options.out, files=options.files))
    assert found.to_dict()["xz"] is None
    assert str(found).endswith("(xz -9: failed, it needs 0.7 GB of memory)")


def test_a_run_on_text_is_evaluated_on_text(options: TrainOptions) -> None:
    train(options)
    for given, message in (
        ({"task": "s3"}, "--task is 's3', but .* was trained on text"),
        ({"sequences": 3}, "--sequences is 3, but .* was trained on text"),
        ({}, "was trained on text; give files to measure it on"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_run(EvalOptions(run=options.out, **given))


@pytest.mark.parametrize("reset_documents", [False, True])
def test_text_is_read_in_rows_that_follow_what_is_before_them(options: TrainOptions, reset_documents: bool) -> None:
    train(dataclasses.replace(options, reset_documents=reset_documents))
    texts = options.files
    exact, parts = (evaluate_run(EvalOptions(run=options.out, files=texts, rows=rows)) for rows in (1, 8))
    default = evaluate_run(EvalOptions(run=options.out, files=texts)).to_dict()
    assert parts.to_dict()["bits_per_byte"] == pytest.approx(exact.to_dict()["bits_per_byte"], rel=1e-2)
    assert default["rows"] == 32
    assert ", in 8 parts " in str(parts)
    with pytest.raises(InputError, match="--rows is 99999"):
        evaluate_run(EvalOptions(run=options.out, files=texts, rows=99999))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "s99"}, "--task: group is 's99'; the number after s must be 2 to 5"),
        ({"task": "z2", "files": ["a.txt"]}, "--task is 'z2', which needs no data, but files is"),
        ({"labelled": "stream"}, "--labelled is 'stream' without files"),
        ({"task": "z2", "tokenizer": "t.json"}, "--tokenizer is 't.json', but this is for text"),
        ({"task": "z2", "reset_documents": True}, "--reset-documents is True, but this is for text"),
        (
            {"labelled": "sequences", "files": ["a"], "first_block_len": 4},
            "sequences of files have lengths of their own",
        ),
        ({"task": "z2", "mastery": 0.9}, "--mastery is 0.9 without --first-block-len; give both"),
        ({"mastery": 0.9, "first_block_len": 4}, "--mastery is 0.9 without --task; give both"),
        (
            {"task": "z2", "mastery": 0.9, "first_block_len": 4, "curriculum_updates": 2},
            "--mastery is 0.9, and --curriculum-updates is 2 too; give one",
        ),
        ({"task": "algorithmic-3", "mastery": 0.9, "first_block_len": 4}, "task 'algorithmic-3' is one stream"),
        ({"task": "z2", "mastery": 0.9, "first_block_len": 24}, "--first-block-len is 24; it must be at most"),
    ],
)
def test_options_that_contradict_each_other_are_errors(
    options: TrainOptions, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(options, **{"files": [], **changes})


def test_too_short_sequences_are_an_error_before_anything_is_written(parity: TrainOptions) -> None:
    with pytest.raises(InputError, match="sequences of task mqar have at least"):
        train(dataclasses.replace(parity, task="mqar", block_len=2))
    assert not Path(parity.out).exists()
