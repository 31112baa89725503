"""Two gloo processes train as one does with the same streams, and take over each other's checkpoints."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.processes import Processes
from feedback_transformer_pytorch.training.saving.checkpoint import Checkpoints
from variants import VARIANTS


@pytest.fixture
def options(options: TrainOptions, tmp_path: Path) -> TrainOptions:
    """Without dropout, as other processes draw other random numbers; with documents, so that memories differ."""
    text = tmp_path / "text.jsonl"
    lines = [f"{n} sheep and {n * n} goats went over the bridge. " * (n % 5 + 1) for n in range(300)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return dataclasses.replace(
        options,
        files=[str(text)],
        out=str(tmp_path / "one"),
        cache=str(tmp_path / "cache"),
        reset_documents=True,
        dropout=0.0,
        batch_size=8,
        accumulate=2,
        max_updates=8,
        eval_every=4,
        log_every=1,
        keep=9,
    )


def in_two(*command: str) -> str:
    """What two processes print that `torchrun` starts."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_in_two(options: TrainOptions) -> None:
    """With the options in a file."""
    config = Path(options.out + ".yaml")
    config.write_text(yaml.safe_dump(options.to_dict()))
    in_two("-m", "feedback_transformer_pytorch.cli", "train", "--config", str(config))


FAILING = """
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.processes import Processes


def fail_in_one():
    if processes.rank == 1:
        raise InputError("no such file")


with Processes() as processes:
    for run in (processes.on_each_rank, processes.main_rank_first):
        assert run(lambda: processes.rank) == processes.rank
        try:
            run(fail_in_one)
        except InputError as error:
            print(f"{processes.rank} {error}\\n", end="")
"""


def test_an_error_of_one_process_is_raised_in_all(tmp_path: Path) -> None:
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    assert sorted(in_two(str(program)).splitlines()) == ["0 no such file"] * 2 + ["1 no such file"] * 2


def figures(options: TrainOptions) -> list[float]:
    """The losses, and the bits per byte of the held-out text."""
    lines = (Path(options.out) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record.get("loss", record.get("bits_per_byte")) for record in records if record["kind"] != "xz"]


def spans(options: TrainOptions) -> list[float]:
    """The mean spans of heads; none for a model without."""
    lines = (Path(options.out) / "metrics.jsonl").read_text().splitlines()
    return [record["mean_span"] for record in map(json.loads, lines) if "mean_span" in record]


def halfway(options: TrainOptions, name: str) -> TrainOptions:
    """A copy of a run as it was after half of its updates."""
    copy = dataclasses.replace(options, out=str(Path(options.out).parent / name))
    shutil.copytree(options.out, copy.out)
    Checkpoints(Path(copy.out) / "checkpoints").keep({options.max_updates // 2})
    return copy


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["paper", "post-norm"])
@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")  # zeros with documents
def test_two_processes_train_a_variant_as_one(options: TrainOptions, strategy: str, name: str) -> None:
    options = dataclasses.replace(options, **VARIANTS[name], span_loss=1e-2, max_updates=4, eval_every=2)
    train(options)
    two = dataclasses.replace(options, out=options.out + "-two", strategy=strategy)
    train_in_two(two)
    assert figures(two) == pytest.approx(figures(options), rel=1e-4)
    assert spans(two) == pytest.approx(spans(options), rel=1e-4)

    one_from_two = halfway(two, "one-from-two")
    train(one_from_two)
    assert figures(one_from_two) == pytest.approx(figures(options), rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_and_take_over_from_each_other(options: TrainOptions, strategy: str) -> None:
    train(options)
    two = dataclasses.replace(options, out=options.out + "-two", strategy=strategy)
    train_in_two(two)
    assert len(figures(two)) == options.max_updates + 2
    assert figures(two) == pytest.approx(figures(options), rel=1e-4)

    one_from_two = halfway(two, "one-from-two")
    train(one_from_two)
    assert figures(one_from_two) == pytest.approx(figures(options), rel=1e-4)

    two_from_one = dataclasses.replace(halfway(options, "two-from-one"), strategy=strategy)
    train_in_two(two_from_one)
    assert figures(two_from_one) == pytest.approx(figures(options), rel=1e-4)

    two_from_two = halfway(two, "two-from-two")
    train_in_two(two_from_two)
    assert (Path(two_from_two.out) / "model.safetensors").read_bytes() == (
        Path(two.out) / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "task", [{"task": "copy", "block_len": 16}, {"task": "z2", "first_block_len": 4, "mastery": 0.05}], ids=str
)
def test_two_processes_learn_labels_as_one(options: TrainOptions, task: dict[str, Any]) -> None:
    """Although one may have more labels than the other."""
    options = dataclasses.replace(options, files=[], reset_documents=False, max_updates=4, eval_every=2, **task)
    train(options)
    two = dataclasses.replace(options, out=options.out + "-two")
    train_in_two(two)
    assert figures(two) == pytest.approx(figures(options), rel=1e-4)

    one_from_two = halfway(two, "one-from-two")
    train(one_from_two)
    assert figures(one_from_two) == pytest.approx(figures(options), rel=1e-4)


def test_the_wrapped_model_goes_before_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round the model, which would drop the group last, may wait for the group's thread forever."""
    alive = []
    with Processes() as processes:
        wrapped = weakref.ref(processes.wrap(nn.Linear(1, 1), "ddp"))
        assert wrapped() is not None
        processes.count = 2
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: alive.append(wrapped() is not None))
    assert alive == [False]
