"""Text to model: read, tokenized, and split into streams."""

from __future__ import annotations

from ...data import Corpus, Streams, Tokenizer, cache_at, load_tokenizer, read_corpus, stages
from ...errors import InputError
from ..evaluation.validation import TextValidation
from ..objective import objective_of
from ..options import TrainOptions
from ..processes import Processes
from ..reporting.progress import TrainingProgress
from ..saving.run import Run
from ..saving.saver import Fingerprints
from .dataset import Dataset


def text_dataset(options: TrainOptions, run: Run | None, progress: TrainingProgress, processes: Processes) -> Dataset:
    """Text, whose next tokens are to be predicted.

    Args:
        run: the run that resumes, whose tokenizer is used; None for a new one.

    Raises:
        InputError: the text or the tokenizer cannot be used.
    """
    tokenizer = processes.on_each_rank(lambda: _tokenizer(options, run))
    corpus = _corpus(options, tokenizer, progress, processes)
    validation = TextValidation(options, corpus, tokenizer)
    return Dataset(
        tokens=tokenizer,
        blocks=Streams(
            corpus.train.tokens,
            batch_size=options.batch_size,
            stages=stages(options.block_len, options.first_block_len, options.curriculum_updates),
            rows=processes.rows(options.batch_size, options.accumulate),
            documents=corpus.train.starts if options.reset_documents else None,
        ),
        objective=objective_of(options, tokens_per_byte=len(corpus.train.tokens) / corpus.train.num_bytes),
        validation=validation,
        fingerprints=Fingerprints(corpus.fingerprint, tokenizer.fingerprint),
        summary=f"{corpus.name}: {corpus.train.num_bytes:,} bytes to train on, {validation.num_bytes:,} held out",
        command="generate",
    )


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

    def read() -> Corpus:
        with progress.reading() as on_progress:
            return read_corpus(
                options.files,
                options.heldout,
                tokenizer,
                text_field=options.text_field,
                cache=cache_at(options.cache),
                on_progress=on_progress,
            )

    return processes.main_rank_first(read)
