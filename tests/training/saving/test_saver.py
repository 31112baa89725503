import dataclasses
import re
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from feedback_transformer_pytorch.data import ByteTokenizer
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.recurrence.native import applicability, library
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.processes import Processes
from feedback_transformer_pytorch.training.reporting.meter import Meter
from feedback_transformer_pytorch.training.saving import saver as module
from feedback_transformer_pytorch.training.saving.run import Run
from feedback_transformer_pytorch.training.saving.saver import Fingerprints, Saver, newest
from feedback_transformer_pytorch.training.updates.trainer import Trainer


@dataclasses.dataclass
class Training:
    """All that a saver saves."""

    run: Run
    trainer: Trainer
    meter: Meter
    saver: Saver

    def go_on(self, updates: int) -> None:
        for _ in range(updates):
            self.meter.add(self.trainer.step())

    def save_each(self, updates: int) -> list[int]:
        for _ in range(updates):
            self.go_on(1)
            self.saver.save()
        return self.run.checkpoints.updates()


@pytest.fixture
def start(trainer_of: Callable[[TrainOptions], Trainer], processes: Processes) -> Callable[..., Training]:
    """Begins a run, or opens it again with a fresh trainer."""

    def start(options: TrainOptions, **changes: str) -> Training:
        run = Run.open(options.out) if options.resume else Run.create(options, ByteTokenizer())
        trainer = trainer_of(options)
        meter = Meter(max_updates=options.max_updates, device=processes.device)
        fingerprints = Fingerprints(**{"data": "d" * 64, "tokenizer": "bytes", **changes})
        return Training(run, trainer, meter, Saver(options, run, trainer, meter, None, fingerprints, processes))

    return start


def again(options: TrainOptions) -> TrainOptions:
    return dataclasses.replace(options, resume=True)


def test_a_checkpoint_is_due_every_so_many_updates(options: TrainOptions, start: Callable[..., Training]) -> None:
    training = start(dataclasses.replace(options, checkpoint_every=2, checkpoint_minutes=None))
    due = []
    for _ in range(4):
        training.go_on(1)
        due.append(training.saver.is_due())
    assert due == [False, True, False, True]


def test_a_checkpoint_is_due_so_many_minutes_after_the_last(
    options: TrainOptions, start: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    training = start(dataclasses.replace(options, checkpoint_minutes=0.5))
    training.go_on(1)
    due = []
    for moment in (1029.0, 1031.0):
        now = moment
        due.append(training.saver.is_due())
    training.saver.save()
    for moment in (1060.0, 1062.0):
        now = moment
        due.append(training.saver.is_due())
    assert due == [False, True, False, True]


def test_without_updates_or_minutes_none_is_due(options: TrainOptions, start: Callable[..., Training]) -> None:
    training = start(dataclasses.replace(options, checkpoint_minutes=None))
    training.go_on(1)
    assert not training.saver.is_due()


def test_the_newest_are_kept_and_the_best(options: TrainOptions, start: Callable[..., Training]) -> None:
    training = start(dataclasses.replace(options, keep=2))
    assert training.save_each(3) == [2, 3]
    for update, bits in ((1, 2.0), (3, 1.5), (2, float("nan"))):
        training.run.log({"kind": "validation", "update": update, "bits_per_byte": bits})
    assert training.save_each(3) == [3, 5, 6]


def test_an_update_is_saved_once(
    options: TrainOptions, start: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = start(options)
    training.saver.save()
    assert training.run.checkpoints.updates() == []
    training.save_each(1)
    monkeypatch.setattr(training.trainer, "weights", lambda: pytest.fail("it is saved again"))
    training.saver.save()


def test_another_trainer_goes_on_where_the_first_was(options: TrainOptions, start: Callable[..., Training]) -> None:
    first = start(options)
    first.run.log({"kind": "train", "update": 2})
    first.go_on(3)
    first.saver.save()
    first.run.log({"kind": "train", "update": 4})

    second = start(again(options))
    second.saver.resume(newest(second.run))
    assert (second.saver.saved, second.trainer.update) == (3, 3)
    assert [record["update"] for record in second.run.metrics()] == [2]
    assert second.meter.so_far()["tokens"] == 3 * 64
    assert second.meter.so_far()["seconds"] > 0
    second.saver.save()
    assert second.run.checkpoints.updates() == [3]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Lets the machine have the compiled kernel of a key, or none; nothing may be computed with it."""

    def install(key: str | None) -> None:
        stub = None if key is None else types.SimpleNamespace(most_rows=lambda: 256, _name=f"kernel-{key}.so")
        for owner in (applicability, library):
            monkeypatch.setattr(owner, "library", lambda: stub)

    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)
    return install


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("a1", "a1", None),
        (None, None, None),
        (
            "a1",
            None,
            "was computed with the compiled kernel a1, and this run uses torch operations: .* not bit for bit$",
        ),
        (
            None,
            "a1",
            "was computed with torch operations, and this run uses the compiled kernel a1: .* not bit for bit$",
        ),
        (
            "a1",
            "b2",
            "was computed with the compiled kernel a1, and this run uses the compiled kernel b2: .* not bit for bit$",
        ),
    ],
)
def test_a_checkpoint_says_what_walked_time(
    options: TrainOptions,
    start: Callable[..., Training],
    kernel: Callable[[str | None], None],
    before: str | None,
    after: str | None,
    line: str | None,
) -> None:
    first = start(options)
    first.go_on(1)
    kernel(before)
    first.saver.save()
    kernel(after)
    second = start(again(options))
    shown = second.saver.resume(newest(second.run))
    assert (shown is None) == (line is None)
    assert shown is None or re.search(line, shown)


@pytest.mark.parametrize("state", [{}, {"walk": None}])
def test_a_checkpoint_that_does_not_say_is_gone_on_from_in_silence(
    options: TrainOptions, start: Callable[..., Training], processes: Processes, state: dict[str, Any]
) -> None:
    """As one of an earlier version does not."""
    training = start(options)
    training.save_each(1)
    checkpoints = training.run.checkpoints
    checkpoint = checkpoints.load(1)
    others = {name: value for name, value in checkpoint.state.items() if name != "walk"}
    checkpoints.keep(set())
    checkpoints.save(dataclasses.replace(checkpoint, state={**others, **state}), processes)
    second = start(again(options))
    assert second.saver.resume(newest(second.run)) is None


def test_where_nothing_was_saved_nothing_is_found(options: TrainOptions, start: Callable[..., Training]) -> None:
    assert newest(start(options).run) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": "e" * 64},
            "text.txt is not what .* was trained with: its fingerprint is e{12}, not d{12}",
        ),
        (
            {"tokenizer": "a" * 64},
            "tokenizer.json is not what .* was trained with: its fingerprint is a{12}, not bytes",
        ),
    ],
)
def test_another_text_or_tokenizer_is_refused(
    options: TrainOptions, start: Callable[..., Training], changes: dict[str, str], message: str
) -> None:
    start(options).save_each(1)
    other = start(again(options), **changes)
    with pytest.raises(InputError, match=message):
        other.saver.resume(newest(other.run))


def test_a_checkpoint_of_other_options_is_refused(options: TrainOptions, start: Callable[..., Training]) -> None:
    training = start(options)
    training.save_each(1)
    training.run.options = dataclasses.replace(options, lr=0.5)
    with pytest.raises(
        InputError, match="00000001 belongs to another run: its --lr is 0.01, in .*run it is 0.5; restore"
    ):
        newest(training.run)


@pytest.mark.parametrize("name", ["meter", "metrics", "data", "options"])
def test_a_checkpoint_that_lacks_something_is_refused(
    options: TrainOptions, start: Callable[..., Training], processes: Processes, name: str
) -> None:
    """As one of another version may."""
    training = start(options)
    training.save_each(1)
    checkpoints = training.run.checkpoints
    checkpoint = checkpoints.load(1)
    state: dict[str, Any] = {key: value for key, value in checkpoint.state.items() if key != name}
    checkpoints.keep(set())
    checkpoints.save(dataclasses.replace(checkpoint, state=state), processes)
    second = start(again(options))
    with pytest.raises(InputError, match=f"00000001 is not a checkpoint of this run \\(.*{name}.*\\); delete it"):
        second.saver.resume(newest(second.run))


def test_metrics_that_are_shorter_than_the_checkpoint_knows_are_refused(
    options: TrainOptions, start: Callable[..., Training]
) -> None:
    training = start(options)
    training.run.log({"kind": "train", "update": 1})
    training.save_each(1)
    (training.run.path / "metrics.jsonl").write_text("{}\n")
    second = start(again(options))
    with pytest.raises(InputError, match="metrics.jsonl is damaged"):
        second.saver.resume(newest(second.run))


def change(run: Run, processes: Processes, part: str, tensor: str) -> None:
    """Gives a tensor of the checkpoint another shape."""
    checkpoint = run.checkpoints.load(1)
    run.checkpoints.keep(set())
    tensors = {**getattr(checkpoint, part), tensor: torch.zeros(3, 3)}
    run.checkpoints.save(dataclasses.replace(checkpoint, **{part: tensors}), processes)


def test_a_checkpoint_of_other_weights_is_refused(
    options: TrainOptions, start: Callable[..., Training], processes: Processes
) -> None:
    training = start(options)
    training.save_each(1)
    change(training.run, processes, "model", "token_emb.weight")
    second = start(again(options))
    message = r"00000001/model.safetensors does not match .*config.yaml: token_emb.weight is \(3, 3\) in the weights"
    with pytest.raises(InputError, match=message):
        second.saver.resume(newest(second.run))


def test_a_checkpoint_of_another_optimizer_is_refused(
    options: TrainOptions, start: Callable[..., Training], processes: Processes
) -> None:
    training = start(options)
    training.save_each(1)
    change(training.run, processes, "optimizer", "token_emb.weight/exp_avg")
    second = start(again(options))
    with pytest.raises(InputError, match=r"not a checkpoint of this run \(.*exp_avg is \(3, 3\), not \(256, 16\)"):
        second.saver.resume(newest(second.run))


def test_an_error_of_the_device_is_not_blamed_on_the_checkpoint(
    options: TrainOptions, start: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(options).save_each(1)
    second = start(again(options))

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(second.trainer, "restore", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        second.saver.resume(newest(second.run))
