"""Training from start to end: data in, RUN directory out."""

from __future__ import annotations

import math
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import Corpus, Streams, Tokenizer, default_cache, load_tokenizer, read_corpus, stages
from ..errors import InputError
from ..files import write_atomically
from .evaluation.validation import Validation
from .evaluation.xz import XzFigures
from .interrupt import Stopped, StopRequest
from .models.architectures import LanguageModel, build_model
from .models.initialisation import start_from
from .options import TrainOptions
from .processes import Processes
from .reporting.meter import Meter
from .reporting.plots import curves_png
from .reporting.progress import TrainingProgress
from .reporting.trackers import Trackers, check_installed
from .saving.checkpoint import Checkpoint
from .saving.run import Run, find
from .saving.saver import Fingerprints, Saver, newest
from .updates.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """How training ended: after `update` updates, by the signal `stopped_by`, or at the end if that is None."""

    update: int
    stopped_by: signal.Signals | None


def train(options: TrainOptions) -> Outcome:
    """Trains a model in the RUN directory `options.out`, or resumes the run there.

    It reports on standard output. It checks all input before it creates the directory. SIGINT and SIGTERM end training
    between two updates, with a checkpoint. With several processes (`torchrun`, `accelerate launch`) all of them must
    call it; the first one writes and reports.

    Raises:
        InputError: the text, an option or the directory cannot be used, a checkpoint is damaged, or training diverged.
        MissingExtraError: an option needs a package that is not installed.
    """
    check_installed(options)
    with Processes(options.trackers, options.out) as processes:
        return _train(options, processes)


def _train(options: TrainOptions, processes: Processes) -> Outcome:
    found = find(options)
    checkpoint = None if found is None else newest(found)
    tokenizer = _tokenizer(options, found)
    with TrainingProgress(options, quiet=not processes.is_main) as progress:
        corpus = _corpus(options, tokenizer, progress, processes)
        streams = Streams(
            corpus.train.tokens,
            batch_size=options.batch_size,
            stages=stages(options.block_len, options.first_block_len, options.curriculum_updates),
            rows=processes.rows(options.batch_size, options.accumulate),
            documents=corpus.train.starts if options.reset_documents else None,
        )
        model = _model(options, tokenizer, fresh=checkpoint is None)
        size = sum(parameter.numel() for parameter in model.parameters())
        trainer = Trainer(options, model, streams, processes)
        validation = Validation(options, corpus, tokenizer)
        meter = Meter(
            bits_per_nat=len(corpus.train.tokens) / corpus.train.num_bytes / math.log(2),
            max_updates=options.max_updates,
            device=processes.device,
        )
        progress.say(
            f"{corpus.name}: {corpus.train.num_bytes:,} bytes to train on, {validation.num_bytes:,} held out; "
            f"{size:,} parameters, on {processes.device}" + (f" x {processes.count}" if processes.count > 1 else "")
        )
        processes.main_rank_first(lambda: Run.create(options, tokenizer) if found is None else found.clean())
        run = found or Run.open(options.out)
        fingerprints = Fingerprints(corpus.fingerprint, tokenizer.fingerprint)
        saver = Saver(options, run, trainer, meter, fingerprints, processes)
        xz = _begin(run, saver, checkpoint, validation, progress, processes)
        trackers = Trackers(options, processes)
        with StopRequest() as stop, trackers.started():
            return _Loop(
                options, processes, streams, trainer, validation, xz, meter, run, saver, trackers, progress, stop
            ).train()


def _tokenizer(options: TrainOptions, run: Run | None) -> Tokenizer:
    """The tokenizer of the run that resumes, or else that of `--tokenizer`."""
    if run is None:
        return load_tokenizer(options.tokenizer)
    tokenizer = run.tokenizer()
    if options.tokenizer != run.options.tokenizer and (
        load_tokenizer(options.tokenizer).fingerprint != tokenizer.fingerprint
    ):
        raise InputError(
            f"--tokenizer is {options.tokenizer}, which is not the tokenizer of the run in {run.path}; "
            "leave it out, or choose another --out"
        )
    return tokenizer


def _corpus(options: TrainOptions, tokenizer: Tokenizer, progress: TrainingProgress, processes: Processes) -> Corpus:
    """The text. The main process reads it first; the other processes find its tokens in the cache."""
    if processes.count > 1 and "-" in options.files + options.heldout:
        raise InputError(
            f"standard input (-) is given to {processes.count} processes, which cannot all read it; give a file"
        )
    found: list[Corpus] = []

    def read() -> None:
        with progress.reading() as on_progress:
            corpus = read_corpus(
                options.files,
                options.heldout,
                tokenizer,
                text_field=options.text_field,
                cache=default_cache() if options.cache is None else Path(options.cache),
                on_progress=on_progress,
            )
        found.append(corpus)

    processes.main_rank_first(read)
    processes.on_all_ranks(lambda: None if found else read())
    return found[0]


def _model(options: TrainOptions, tokenizer: Tokenizer, *, fresh: bool) -> LanguageModel:
    torch.manual_seed(options.seed)
    model = build_model(options, tokenizer.num_tokens)
    if fresh and options.init_from is not None:
        source = Run.open(options.init_from)
        if source.tokenizer().fingerprint != tokenizer.fingerprint:
            raise InputError(
                f"--init-from is {options.init_from}, a run with another tokenizer; give its tokenizer "
                "as --tokenizer, or choose another run"
            )
        start_from(model, source.load_model(tokenizer.num_tokens))
    return model


def _begin(
    run: Run,
    saver: Saver,
    checkpoint: Checkpoint | None,
    validation: Validation,
    progress: TrainingProgress,
    processes: Processes,
) -> XzFigures:
    """Resumes from the checkpoint, or starts metrics.jsonl; returns the figures of xz on the held-out text."""
    if checkpoint is not None:
        other_walk = saver.resume(checkpoint)
        progress.say(f"resuming from {run.checkpoints.folder(saver.saved)}")
        if other_walk is not None:
            progress.say(other_walk)
        for record in run.metrics():
            if record["kind"] == "xz":
                return XzFigures(record["alone"], record["after_training"])
    elif processes.main_rank_first(run.drop_metrics):
        progress.say(f"{run.path} has no checkpoint: training starts from the beginning")
    xz = processes.main_rank_first(validation.xz)
    progress.say(f"held-out text in bits/byte: {xz}")
    processes.main_rank_first(lambda: run.log({"kind": "xz", **asdict(xz)}))
    return xz


@dataclass(frozen=True)
class _Loop:
    options: TrainOptions
    processes: Processes
    streams: Streams
    trainer: Trainer
    validation: Validation
    xz: XzFigures
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
        try:
            if self._is_validation_owed():
                self._validate()
            elif trainer.update >= total:
                self.progress.say(f"{self.run.path} is done ({total} updates); choose another --out for a new run")
            while trainer.update < total:
                self._check_stop()
                self._update()
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
                f"to generate text with these weights: feedback-transformer generate {self.run.path}"
            )
            return Outcome(trainer.update, stopped.signal)
        return Outcome(trainer.update, None)

    def _check_stop(self) -> None:
        if self.processes.any(self.stop.received is not None):
            raise Stopped(self.stop.received or signal.SIGTERM)

    def _update(self) -> None:
        step = self.trainer.step()
        before, after = (self.streams.tokens_before(update) for update in (step.update - 1, step.update))
        self.meter.add(step, after - before)
        self.progress.advance(step.update)
        if self.meter.skipped_in_row > self.options.max_skipped:
            saved = self.saver.saved
            good = f"the last checkpoint is {self.run.checkpoints.folder(saved)}" if saved else "there is no checkpoint"
            raise InputError(
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
        return update not in self.processes.main_rank_first(self.run.validated)

    def _report(self) -> None:
        interval = self.meter.take()
        learned = {**self.trainer.layer_weights(), **self.trainer.mean_span()}
        if interval is None:
            return
        record = {**interval.to_dict(), **learned}
        self.processes.main_rank_first(lambda: self.run.log({"kind": "train", **record}))
        self.trackers.log("train", record)
        self.progress.interval(interval)

    def _validate(self) -> None:
        """Measures the model on the held-out text. All processes must: each may hold a part of the model."""
        update, model = self.trainer.update, self.trainer.model
        # With several processes, no single one may stop, because the others would wait for it.
        check = self.stop.check if self.processes.count == 1 else _continue
        with self.trainer.autocast():
            bits_per_byte = self.validation.bits_per_byte(model, check)
            sample = self.validation.sample(model, update, check)
        self._save_weights()
        figures = {"update": update, **self.meter.so_far(), "bits_per_byte": bits_per_byte}
        self.processes.main_rank_first(
            lambda: self._record_validation({"kind": "validation", **figures, "sample": sample})
        )
        self.trackers.log("validation", figures)
        self.progress.validation(update, bits_per_byte, self.xz, sample)
        self.meter.resume()

    def _record_validation(self, record: dict[str, Any]) -> None:
        self.run.log(record)
        write_atomically(self.run.curves, curves_png(self.run.metrics(), title=self.run.path.name))

    def _save_weights(self) -> None:
        weights = self.trainer.weights()
        self.processes.main_rank_first(lambda: self.run.save_weights(weights))


def _continue() -> None:
    """Does nothing, in place of `StopRequest.check`."""
