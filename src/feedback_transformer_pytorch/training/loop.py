"""Training from start to end: data in, RUN directory out."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import check_heldout, is_pipe
from ..errors import DivergedError, InputError
from ..files import write_atomically
from .datasets.dataset import Dataset
from .datasets.labelled import labelled_dataset
from .datasets.text import text_dataset
from .evaluation.xz import XzError, XzFigures
from .interrupt import Stopped, StopRequest
from .models.architectures import LanguageModel, build_model
from .models.initialisation import start_from
from .options import TrainOptions
from .processes import Processes
from .reporting.estimate import Estimate
from .reporting.meter import Meter
from .reporting.plots import curves_png
from .reporting.progress import TrainingProgress
from .reporting.trackers import Trackers, check_installed
from .saving.checkpoint import Checkpoint
from .saving.lock import locked
from .saving.run import Run, find
from .saving.saver import Saver, newest
from .updates.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        update: the number of updates that were made.
        stopped_by: the signal that ended it; None if it came to its end.
    """

    update: int
    stopped_by: signal.Signals | None


def train(options: TrainOptions) -> Outcome:
    """Trains a model in the RUN directory `options.out`, or resumes the run there.

    It reports on standard output. It checks all input before it creates the directory. SIGINT and SIGTERM end training
    between two updates, with a checkpoint. With several processes (`torchrun`, `accelerate launch`) all of them must
    call it; the first one writes and reports.

    Returns:
        How training ended. `Run.open(options.out)` opens what it wrote.

    Raises:
        InputError: the text, an option or the directory cannot be used, another process trains there, or a checkpoint
            is damaged.
        DivergedError: more than `max_skipped` updates in a row were not finite.
        MissingExtraError: an option needs a package that is not installed.
    """
    check_installed(options)
    with Processes(options.trackers, options.out) as processes:
        return _train(options, processes)


def _train(options: TrainOptions, processes: Processes) -> Outcome:
    found = processes.on_each_rank(lambda: find(options))  # before the main process creates a run
    with ExitStack() as lock, TrainingProgress(options, quiet=not processes.is_main) as progress:

        def hold_lock() -> None:
            lock.enter_context(locked(Path(options.out)))

        def prepare() -> bool:
            if found is None:
                hold_lock()
                Run.create(options, dataset.tokens)
                return False
            found.clean()
            return checkpoint is None and found.start_over(options, dataset.tokens)

        if found is not None:
            processes.on_main_rank(hold_lock)
        checkpoint = None if found is None else processes.on_each_rank(lambda: newest(found))
        if found is not None and checkpoint is not None:
            _check_start(options, found)
        dataset = _dataset(options, found if checkpoint is not None or options.resume else None, progress, processes)
        model = _model(options, dataset, fresh=checkpoint is None)
        size = sum(parameter.numel() for parameter in model.parameters())
        trainer = Trainer(options, model, dataset.blocks, dataset.objective, processes)
        meter = Meter(max_updates=options.max_updates, device=processes.device)
        progress.say(
            f"{dataset.summary}; {size:,} parameters, on {processes.device}"
            + (f" x {processes.count}" if processes.count > 1 else "")
        )
        for line in options.cut_short:
            progress.say(line)
        if processes.on_main_rank(prepare):
            progress.say(f"{options.out} has no checkpoint: training starts from the beginning")
        run = Run.open(options.out)
        saver = Saver(options, run, trainer, meter, dataset.curriculum, dataset.fingerprints, processes)
        reference = _begin(run, saver, checkpoint, dataset, progress, processes)
        trackers = Trackers(options, processes)
        with StopRequest() as stop, trackers.started():
            return _Loop(
                options, processes, dataset, trainer, reference, meter, run, saver, trackers, progress, stop
            ).train()


def _check_start(options: TrainOptions, run: Run) -> None:
    """Raises InputError if the options give a run that has checkpoints other weights to start from."""
    if options.init_from not in (None, run.options.init_from):
        raise InputError(
            f"--init-from is {options.init_from}, but {run.path} has been trained already; leave it out to resume "
            "that run, or choose another --out for a new one"
        )


def _dataset(options: TrainOptions, run: Run | None, progress: TrainingProgress, processes: Processes) -> Dataset:
    pipe = next(filter(is_pipe, options.files + options.heldout), None)
    if processes.count > 1 and pipe is not None:
        name = "standard input (-)" if pipe == "-" else f"the pipe {pipe!r}"
        raise InputError(f"{name} is given to {processes.count} processes, which cannot all read it; give a file")
    check_heldout(options.files, options.heldout)
    if options.is_labelled:
        return labelled_dataset(options, run, processes)
    return text_dataset(options, run, progress, processes)


def _model(options: TrainOptions, dataset: Dataset, *, fresh: bool) -> LanguageModel:
    torch.manual_seed(options.seed)
    model = build_model(options, dataset.tokens.num_tokens)
    if fresh and options.init_from is not None:
        source = Run.open(options.init_from)
        if source.tokens().fingerprint != dataset.tokens.fingerprint:
            raise InputError(
                f"--init-from is {options.init_from}, a run whose tokens have other numbers; give its tokenizer "
                "as --tokenizer or its task as --task, or choose another run"
            )
        start_from(model, source.load_model(dataset.tokens.num_tokens))
    return model


def _begin(
    run: Run,
    saver: Saver,
    checkpoint: Checkpoint | None,
    dataset: Dataset,
    progress: TrainingProgress,
    processes: Processes,
) -> XzFigures | None:
    """Resumes from the checkpoint; returns the figures of xz on the held-out text, which metrics.jsonl starts with."""
    if checkpoint is not None:
        other_walk = saver.resume(checkpoint)
        progress.say(f"resuming from {run.checkpoints.folder(saver.saved)}")
        if other_walk is not None:
            progress.say(other_walk)
        for record in run.metrics():
            if record["kind"] == "xz":
                return XzFigures(record["alone"], record["after_training"])

    def measure_reference() -> XzFigures | None:
        try:
            return dataset.validation.reference()
        except XzError as error:
            progress.say(f"no figures of xz to compare with: {error}; it needs 0.7 GB of memory")
            return None

    reference = processes.on_main_rank(measure_reference)
    if reference is not None:
        progress.say(f"held-out text in bits/byte: {reference}")
        record = {"kind": "xz", **asdict(reference)}
        processes.on_main_rank(lambda: run.log(record))
    return reference


@dataclass(frozen=True)
class _Loop:
    options: TrainOptions
    processes: Processes
    dataset: Dataset
    trainer: Trainer
    reference: XzFigures | None
    meter: Meter
    run: Run
    saver: Saver
    trackers: Trackers
    progress: TrainingProgress
    stop: StopRequest

    def train(self) -> Outcome:
        """Trains to the end or until a stop is requested, and saves a checkpoint in both cases."""
        trainer, total = self.trainer, self.options.max_updates
        self.progress.advance(trainer.update)
        self.meter.resume()
        estimate = Estimate(self.options, trainer.update)
        try:
            if self._is_validation_owed():
                self._validate()
            elif trainer.update >= total:
                self.progress.say(
                    f"{self.run.path} is done ({total} updates); choose another --out for a new run; with "
                    f"--config {self.run.path}/config.yaml --init-from {self.run.path} it starts from these weights"
                )
            while trainer.update < total:
                self._check_stop()
                self._update()
                expected = estimate.after(trainer.update)
                if expected is not None:
                    self.progress.say(expected)
                if self._is_due(self.options.eval_every):
                    self._report()
                    self._validate()
                    self.saver.save()
                    self.meter.resume()
                elif self._is_due(self.options.log_every):
                    self._report()
                if self.saver.is_due():
                    self.meter.pause()
                    self.saver.save()
                    self.meter.resume()
        except Stopped as stopped:
            self.saver.save()
            self._save_weights()
            self.progress.say(
                f"stopped by {stopped.signal.name} after update {trainer.update} of {total}\n"
                f"to resume: feedback-transformer train --resume --out {self.run.path}\n"
                f"to use these weights: feedback-transformer {self.dataset.command} {self.run.path}"
            )
            return Outcome(trainer.update, stopped.signal)
        return Outcome(trainer.update, None)

    def _check_stop(self) -> None:
        if self.processes.any(self.stop.received is not None):
            raise Stopped(self.stop.received or signal.SIGTERM)

    def _update(self) -> None:
        step = self.trainer.step()
        self.meter.add(step)
        if self.dataset.curriculum is not None and not step.skipped:
            self.dataset.curriculum.observe(step.metrics)
        self.progress.advance(step.update)
        if self.meter.skipped_in_row > self.options.max_skipped:
            saved = self.saver.saved
            good = f"the last checkpoint is {self.run.checkpoints.folder(saved)}" if saved else "there is no checkpoint"
            raise DivergedError(
                f"training diverged: the loss or the gradient was not finite at {self.meter.skipped_in_row} updates in "
                f"a row, the last one {step.update} (loss {step.loss}); {good}; "
                "train a new run with a smaller --lr or more --warmup-updates"
            )

    def _is_due(self, every: int) -> bool:
        return self.trainer.update % every == 0 or self.trainer.update == self.options.max_updates

    def _is_validation_owed(self) -> bool:
        """Whether a stop interrupted the validation that the last update required."""
        update = self.trainer.update
        if update == 0 or not self._is_due(self.options.eval_every):
            return False
        return update not in self.processes.on_main_rank(self.run.validated)

    def _report(self) -> None:
        interval = self.meter.take()
        learned = {**self.trainer.layer_weights(), **self.trainer.mean_span()}
        if interval is None:
            return
        record = {**interval.to_dict(), **learned}
        self.processes.on_main_rank(lambda: self.run.log({"kind": "train", **record}))
        self.trackers.log("train", record)
        self.progress.interval(interval, self.dataset.objective.metrics)

    def _validate(self) -> None:
        """Measures the model on held-out data. All processes must: each may hold a part of the model."""
        update, model = self.trainer.update, self.trainer.model
        # With several processes, no single one may stop, because the others would wait for it.
        check = self.stop.check if self.processes.count == 1 else _continue
        try:
            with self.trainer.autocast():
                measured = self.dataset.validation.measure(model, self.dataset.objective, check)
                sample = self.dataset.validation.sample(model, update, check)
        finally:
            self.meter.resume()  # a stop saves the meter's state
        self._save_weights()
        record = {"update": update, **self.meter.so_far(), **measured}
        self.processes.on_main_rank(lambda: self._record_validation({"kind": "validation", **record, "sample": sample}))
        self.trackers.log("validation", record)
        metrics = [metric for metric in self.dataset.objective.metrics if metric.name in measured]
        text = "  ".join(metric.text(measured[metric.name]) for metric in metrics)
        self.progress.validation(update, text, self.reference, sample)
        self.meter.resume()

    def _record_validation(self, record: dict[str, Any]) -> None:
        self.run.log(record)
        write_atomically(self.run.curves, self._curves())

    def _curves(self) -> bytes:
        return curves_png(self.run.metrics(), title=self.run.path.name, metric=self.run.metric)

    def _save_weights(self) -> None:
        weights = self.trainer.weights()
        self.processes.on_main_rank(lambda: self.run.save_weights(weights))


def _continue() -> None:
    """Does nothing, in place of `StopRequest.check`."""
