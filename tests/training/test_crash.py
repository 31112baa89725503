"""Training that is killed again and again ends as if nothing had happened, bit for bit."""

import dataclasses
import random
import signal
import time
from pathlib import Path

import pytest
from crashing import count_operations, left_behind, run_and_kill

from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving.saver import Saver


@pytest.fixture
def undisturbed(options: TrainOptions, tmp_path: Path) -> TrainOptions:
    """The options of a run of about a second with many saves, which has been trained."""
    options = dataclasses.replace(
        options, out=str(tmp_path / "undisturbed"), cache=str(tmp_path / "cache"), max_updates=24, eval_every=12,
        checkpoint_every=3, checkpoint_minutes=None, log_every=4, dropout=0.1,
    )  # fmt: skip
    train(options)
    return options


def test_what_a_killed_run_did_not_come_to_delete_is_deleted(
    undisturbed: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it was killed right after its last save, so that there is nothing left to train."""
    options = dataclasses.replace(undisturbed, out=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "_prune", lambda saver: None)
        train(options)
    assert len(list((tmp_path / "killed" / "checkpoints").iterdir())) == 8
    train(options)
    assert left_behind(Path(options.out)) == left_behind(Path(undisturbed.out))


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_changes_nothing(undisturbed: TrainOptions, tmp_path: Path, kills: int) -> None:
    """A third of the moments, at least, lie within a save."""
    expected = left_behind(Path(undisturbed.out))
    began = time.perf_counter()
    operations = count_operations(dataclasses.replace(undisturbed, out=str(tmp_path / "counted")))
    duration = time.perf_counter() - began
    chance = random.Random(0)
    killed, killed_in_save, finished = 0, 0, 0
    while killed < kills:
        options = dataclasses.replace(undisturbed, out=str(tmp_path / f"run{finished}"))
        in_save = killed_in_save * 3 < kills
        moment = chance.randint(1, operations // 3) if in_save else None
        code = run_and_kill(options, at_operation=moment, after=None if in_save else chance.uniform(0, duration))
        if code == 0:
            assert left_behind(Path(options.out)) == expected
            finished += 1
            continue
        assert code == -signal.SIGKILL
        killed += 1
        killed_in_save += in_save
    assert 3 * killed_in_save >= kills
    assert run_and_kill(options) == 0
    assert left_behind(Path(options.out)) == expected
