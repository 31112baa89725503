"""Training from start to end: data in, RUN directory out."""

from __future__ import annotations

import math
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from ..data import ByteTokenizer, Streams, default_corpus, read_corpus
from ..errors import InputError
from .files import write_whole
from .interrupt import Stopped, StopRequest
from .meter import Meter
from .options import TrainOptions
from .plots import curves_png
from .progress import TrainingProgress, describe_xz
from .run import Run, check_free
from .trainer import Trainer
from .validation import Validation, XzFigures


@dataclass(frozen=True)
class Outcome:
    """How training ended: after `update` updates, by the signal `stopped_by` or, if None, because it was done."""

    update: int
    stopped_by: signal.Signals | None


def train(options: TrainOptions) -> Outcome:
    """Trains a model and leaves everything in the RUN directory `options.out`. It reports on standard output.

    All input is checked before that directory is made. SIGINT and SIGTERM end training between two updates, with
    the weights saved.

    Raises:
        InputError: the text, an option or the place to write to cannot be used, or training diverged.
    """
    check_free(Path(options.out))
    corpus = read_corpus(options.files) if options.files else default_corpus()
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(corpus.train)
    streams = Streams(tokens, batch_size=options.batch_size, block_len=options.block_len)
    trainer = Trainer(options, streams, tokenizer.num_tokens)
    validation = Validation(options, corpus, tokens, tokenizer)
    meter = Meter(
        tokens_per_update=options.batch_size * options.block_len,
        bits_per_nat=len(tokens) / tokenizer.num_bytes(tokens) / math.log(2),
        max_updates=options.max_updates,
    )
    with TrainingProgress(options) as progress:
        size = sum(parameter.numel() for parameter in trainer.model.parameters())
        progress.say(
            f"{corpus.name}: {len(corpus.train):,} bytes to learn, {validation.num_bytes:,} held out; "
            f"{size:,} parameters, on {trainer.accelerator.device}"
        )
        xz = validation.xz()
        progress.say(f"held-out text in bits/byte: {describe_xz(xz)}")
        run = Run.create(options)
        run.log({"kind": "xz", **asdict(xz)})
        with StopRequest() as stop:
            return _Loop(options, trainer, validation, xz, meter, run, progress, stop).run()


@dataclass(frozen=True)
class _Loop:
    options: TrainOptions
    trainer: Trainer
    validation: Validation
    xz: XzFigures
    meter: Meter
    files: Run
    progress: TrainingProgress
    stop: StopRequest

    def run(self) -> Outcome:
        """Trains to the end or until a stop is asked for; either way the latest weights are saved."""
        try:
            while self.trainer.update < self.options.max_updates:
                self.stop.check()
                self.meter.add(self.trainer.step())
                self.progress.advance(self.trainer.update)
                if self._is_due(self.options.eval_every):
                    self._report()
                    self.files.save_weights(self.trainer.model)
                    self._validate()
                elif self._is_due(self.options.log_every):
                    self._report()
        except Stopped as stopped:
            self._report()
            self.files.save_weights(self.trainer.model)
            self.progress.say(
                f"stopped by {stopped.signal.name} after update {self.trainer.update} of {self.options.max_updates}; "
                f"{self.files.weights} has the weights of that update (the optimizer's state is not kept)\n"
                f"to write with them: feedback-transformer generate {self.files.path}"
            )
            return Outcome(self.trainer.update, stopped.signal)
        return Outcome(self.trainer.update, None)

    def _is_due(self, every: int) -> bool:
        return self.trainer.update % every == 0 or self.trainer.update == self.options.max_updates

    def _report(self) -> None:
        interval = self.meter.take()
        if interval is None:
            return
        if not math.isfinite(interval.loss):
            raise InputError(
                f"training diverged: the loss is {interval.loss} at update {interval.update}; "
                "give a smaller --lr or a longer --warmup-updates (what the last validation saved is untouched)"
            )
        self.files.log({"kind": "train", **interval.to_dict()})
        self.progress.interval(interval)

    def _validate(self) -> None:
        update, model = self.trainer.update, self.trainer.model
        bits_per_byte = self.validation.bits_per_byte(model, self.stop.check)
        sample = self.validation.sample(model, update, self.stop.check)
        self.files.log({"kind": "validation", "update": update, "bits_per_byte": bits_per_byte, "sample": sample})
        write_whole(self.files.curves, curves_png(self.files.metrics(), title=self.files.path.name))
        self.progress.validation(update, bits_per_byte, self.xz, sample)
        self.meter.restart()
