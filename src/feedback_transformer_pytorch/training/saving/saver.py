"""Decides when a run saves checkpoints and which it keeps, and resumes a run from a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError
from ..earlier import completed
from ..options import TrainOptions
from ..processes import Processes
from ..reporting.meter import Meter
from ..schema import flag
from ..updates.mastery import Mastery
from ..updates.trainer import Trainer
from .checkpoint import MODEL, Checkpoint
from .run import Run, check_fit, fixed_options


class Fingerprints(NamedTuple):
    """Fingerprints of the data of a run, and of the tokenizer or vocabulary that numbers its tokens."""

    data: str
    tokenizer: str


class Saver:
    """Saves and restores a run, so that it resumes bit for bit.

    Attributes:
        saved: the update of the newest checkpoint; 0 if there is none.
    """

    def __init__(
        self, options: TrainOptions, run: Run, trainer: Trainer, meter: Meter, curriculum: Mastery | None,
        fingerprints: Fingerprints, processes: Processes,
    ) -> None:  # fmt: skip
        self._options, self._run, self._trainer, self._meter = options, run, trainer, meter
        self._curriculum, self._fingerprints, self._processes = curriculum, fingerprints, processes
        self.saved = 0
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether the options ask for a checkpoint now. All processes must call it together."""
        every, minutes = self._options.checkpoint_every, self._options.checkpoint_minutes
        by_updates = every is not None and self._trainer.update % every == 0
        by_minutes = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        # Clocks differ, so one process decides for all.
        return by_updates or (minutes is not None and self._processes.any(by_minutes))

    def save(self) -> None:
        """Saves a checkpoint, unless the newest is of the same update, and deletes those that `--keep` does not keep.

        Raises:
            InputError: the checkpoint cannot be written; older checkpoints are unchanged.
        """
        trainer, checkpoints = self._trainer, self._run.checkpoints
        if trainer.update == self.saved:
            return
        state = {
            "options": fixed_options(self._options),
            **self._fingerprints._asdict(),
            "metrics": self._processes.on_main_rank(self._run.metrics_file.so_far),
            "meter": self._meter.state(),
            "walk": self._trainer.walk(),
            "curriculum": None if self._curriculum is None else self._curriculum.state(),
        }
        content = Checkpoint(
            update=trainer.update,
            model=trainer.weights(),
            optimizer=trainer.optimizer_state(),
            streams={trainer.rows: trainer.streams_state()},
            state=state,
        )
        checkpoints.save(content, self._processes)
        self.saved, self._saved_at = trainer.update, time.monotonic()
        self._processes.on_main_rank(self._prune)

    def _prune(self) -> None:
        checkpoints, best = self._run.checkpoints, self._run.metric.best(self._run.validated())
        checkpoints.keep({*checkpoints.updates()[-self._options.keep :], *([] if best is None else [best])})

    def resume(self, checkpoint: Checkpoint) -> str | None:
        """Restores the state of the checkpoint that `newest` returned.

        Returns:
            a line for the user if another implementation computed the recurrence, so that the run does not resume bit
            for bit; None if it was the same one, or if the checkpoint does not say which.

        Raises:
            InputError: the checkpoint has another text or tokenizer, or does not belong to this run.
        """
        update = checkpoint.update
        folder = self._run.checkpoints.folder(update)
        try:
            self._check(folder, checkpoint.state)
            config = self._run.path / "config.yaml"
            check_fit(self._trainer.model.state_dict(), checkpoint.model, folder / MODEL, config)
            self._meter.restore(checkpoint.state["meter"])
            if self._curriculum is not None:
                self._curriculum.restore(checkpoint.state["curriculum"])
            metrics = checkpoint.state["metrics"]
            self._trainer.restore(update, checkpoint.model, checkpoint.optimizer, checkpoint.streams)
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _foreign(folder, repr(error)) from error
        self._processes.on_main_rank(lambda: self._run.metrics_file.truncate(metrics, update))
        self._processes.on_main_rank(self._prune)  # a kill may have prevented this after the last save
        self.saved = update
        return self._other_walk(folder, checkpoint.state.get("walk"))

    def _other_walk(self, folder: Path, there: str | None) -> str | None:
        here = self._trainer.walk()
        if there is None or there == here:
            return None
        return (
            f"{folder} was computed with {there}, and this run uses {here}: "
            "from here on, results are the same up to rounding, not bit for bit"
        )

    def _check(self, folder: Path, state: Mapping[str, Any]) -> None:
        # The fingerprint of the data depends on the numbers of its tokens, so what numbers them is compared first.
        compared = [
            ("tokenizer", str(self._run.numbering), "restore this file"),
            ("data", " ".join(self._options.files) or "the default text", "give the data that the run started with"),
        ]
        if self._options.task is not None:
            remedy = "resume with the version of the package that began the run"
            compared = [
                ("tokenizer", f"the vocabulary of task {self._options.task}", remedy),
                ("data", f"task {self._options.task}", remedy),
            ]
        for name, what, remedy in compared:
            here, there = getattr(self._fingerprints, name), state[name]
            if here != there:
                raise InputError(
                    f"{what} is not what {folder} was trained with: its fingerprint is {here[:12]}, not {there[:12]}; "
                    f"{remedy}, or choose another --out"
                )


def newest(run: Run) -> Checkpoint | None:
    """The newest checkpoint of a run, with every byte verified; None if there is none.

    Raises:
        InputError: the checkpoint is damaged, or its options differ from those of the run.
    """
    updates = run.checkpoints.updates()
    if not updates:
        return None
    folder, checkpoint = run.checkpoints.folder(updates[-1]), run.checkpoints.load(updates[-1])
    there = checkpoint.state.get("options")
    if not isinstance(there, dict):
        raise _foreign(folder, "it has no options")
    try:
        there = completed(there)
    except InputError as error:
        raise _foreign(folder, str(error)) from error
    for name, here in fixed_options(run.options).items():
        if name not in there or here != there[name]:
            raise InputError(
                f"{folder} belongs to another run: its {flag(name)} is {there.get(name)!r}, "
                f"in {run.path} it is {here!r}; restore the checkpoint or the config.yaml of this run"
            )
    return checkpoint


def _foreign(folder: Path, why: str) -> InputError:
    return InputError(f"{folder} is not a checkpoint of this run ({why}); delete it to resume from the one before")
