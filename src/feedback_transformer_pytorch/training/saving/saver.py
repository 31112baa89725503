"""When checkpoints are made and which are kept; and how a run goes on from one."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...errors import InputError
from ..options import EARLIER, TrainOptions, flag
from ..processes import Processes
from ..reporting.meter import Meter
from ..updates.trainer import Trainer
from .checkpoint import Checkpoint
from .run import Run, fixed_options


class Fingerprints(NamedTuple):
    """What a run has learnt from."""

    data: str
    tokenizer: str


class Saver:
    """Saves a run so that it can go on bit for bit, and goes on with it.

    Attributes:
        saved: the update of the newest checkpoint; 0 for none.
    """

    def __init__(
        self, options: TrainOptions, run: Run, trainer: Trainer, meter: Meter, fingerprints: Fingerprints,
        processes: Processes,
    ) -> None:  # fmt: skip
        self._options, self._run, self._trainer, self._meter = options, run, trainer, meter
        self._fingerprints, self._processes = fingerprints, processes
        self.saved = 0
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether so many updates or minutes have passed; all processes ask together."""
        every, minutes = self._options.checkpoint_every, self._options.checkpoint_minutes
        by_updates = every is not None and self._trainer.update % every == 0
        by_minutes = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        # Clocks differ: what one process says goes for all.
        return by_updates or (minutes is not None and self._processes.any(by_minutes))

    def save(self) -> None:
        """Makes a checkpoint of where training is, and deletes those that are not to be kept.

        Raises:
            InputError: it cannot be written; those before are still there.
        """
        trainer, checkpoints = self._trainer, self._run.checkpoints
        if trainer.update == self.saved:
            return
        state = {
            "options": fixed_options(self._options),
            **self._fingerprints._asdict(),
            "metrics": self._processes.main_rank_first(self._run.metrics_so_far),
            "meter": self._meter.state(),
            "walk": self._trainer.walk(),
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
        self._processes.main_rank_first(self._prune)

    def _prune(self) -> None:
        checkpoints, validated = self._run.checkpoints, self._run.validated()
        finite = {update: bits for update, bits in validated.items() if math.isfinite(bits)}
        best = {min(finite, key=finite.__getitem__)} if finite else set()
        checkpoints.keep({*checkpoints.updates()[-self._options.keep :], *best})

    def resume(self, checkpoint: Checkpoint) -> str | None:
        """Goes on from a checkpoint, which `newest` found.

        Returns:
            a line for the user where time was walked in another way, so that the run cannot go on bit for bit; None
            where it was walked in the same way, or the checkpoint does not say.

        Raises:
            InputError: it is of another text or tokenizer, or no checkpoint of this run.
        """
        update = checkpoint.update
        folder = self._run.checkpoints.folder(update)
        try:
            self._check(folder, checkpoint.state)
            self._meter.restore(checkpoint.state["meter"])
            metrics = checkpoint.state["metrics"]
            self._trainer.restore(update, checkpoint.model, checkpoint.optimizer, checkpoint.streams)
        except (InputError, torch.OutOfMemoryError):
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise _foreign(folder, repr(error)) from error
        self._processes.main_rank_first(lambda: self._run.cut_metrics(metrics, update))
        self._processes.main_rank_first(self._prune)  # the run may have been killed before it came to this
        self.saved = update
        return self._other_walk(folder, checkpoint.state.get("walk"))

    def _other_walk(self, folder: Path, there: str | None) -> str | None:
        here = self._trainer.walk()
        if there is None or there == here:
            return None
        return (
            f"{folder} was made with {there}, this run uses {here}: "
            "from here on its results are the same up to rounding, not bit for bit"
        )

    def _check(self, folder: Path, state: Mapping[str, Any]) -> None:
        given = " ".join(self._options.files) or "the default text"
        # The fingerprint of a text is also that of its tokenizer, so that one comes first.
        for name, what, remedy in (
            ("tokenizer", str(self._run.path / "tokenizer.json"), "put its own back"),
            ("data", given, "give the text that the run began with"),
        ):
            here, there = getattr(self._fingerprints, name), state[name]
            if here != there:
                raise InputError(
                    f"{what} is not what {folder} was trained with: its fingerprint is {here[:12]}, not {there[:12]}; "
                    f"{remedy}, or choose another --out"
                )


def newest(run: Run) -> Checkpoint | None:
    """The newest checkpoint of a run, every byte of it checked; None if there is none.

    Raises:
        InputError: it is damaged, or of other options than the run's.
    """
    updates = run.checkpoints.updates()
    if not updates:
        return None
    folder, checkpoint = run.checkpoints.folder(updates[-1]), run.checkpoints.load(updates[-1])
    there = checkpoint.state.get("options")
    if not isinstance(there, dict):
        raise _foreign(folder, "it has no options")
    there = {**EARLIER, **there}
    for name, here in fixed_options(run.options).items():
        if name not in there or here != there[name]:
            raise InputError(
                f"{folder} is of another run: its {flag(name)} is {there.get(name)!r}, in {run.path} it is {here!r}; "
                "put back the checkpoint or the config.yaml that belongs here"
            )
    return checkpoint


def _foreign(folder: Path, why: str) -> InputError:
    return InputError(f"{folder} is no checkpoint of this run ({why}); delete it to go on from the one before")
