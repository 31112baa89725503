"""Labelled data: the sequences or the stream of a task, or those of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...data import (
    GeneratedSequences,
    GivenSequences,
    Line,
    Streams,
    Vocabulary,
    block_len_at,
    check_labels,
    fingerprint,
    read_lines,
    stages,
)
from ...errors import InputError
from ...tasks import Labelled, SequenceTask, find_task
from ..evaluation.validation import SequenceValidation, StreamValidation
from ..objective import objective_of
from ..options import TrainOptions
from ..processes import Processes
from ..saving.run import Run
from ..saving.saver import Fingerprints
from ..updates.mastery import Mastery
from .dataset import Dataset

HELDOUT_DIVISOR = 20  # one sequence in so many is held out
# Of generated sequences. Those of training have two numbers, the seed of the run and the update, and so no third.
VALIDATION_SEED = (0, 0, 1)
TEST_SEED = (0, 0, 2)


def labelled_dataset(options: TrainOptions, run: Run | None, processes: Processes) -> Dataset:
    """Labels of positions: of a task, or of files.

    Args:
        run: the run that resumes, whose vocabulary is used; None for a new one.

    Raises:
        InputError: there is no such task, or a file cannot be used.
    """
    rows = processes.rows(options.batch_size, options.accumulate)
    if options.task is not None:
        task = find_task(options.task)
        if isinstance(task, SequenceTask):
            return _generated(options, task, rows)
        parts = task.stream("train"), task.stream("validation")
        return _stream(options, Vocabulary(task.words), *parts, rows, f"task {task.name}")
    train, heldout = processes.on_each_rank(lambda: _lines(options))
    vocabulary = Vocabulary.of(_words(train + heldout)) if run is None else run.vocabulary()
    name = " ".join(options.files)
    known, unseen = ([line.encode(vocabulary) for line in part] for part in (train, heldout))
    check_labels(known, name)
    check_labels(unseen, f"what is held out of {name}")
    if options.labelled == "stream":
        return _stream(options, vocabulary, joined(known), joined(unseen), rows, name)
    return _given(options, vocabulary, known, unseen, rows, name)


def _generated(options: TrainOptions, task: SequenceTask, rows: range) -> Dataset:
    first = options.first_block_len or options.block_len
    if first < task.shortest:
        name = "--block-len" if options.first_block_len is None else "--first-block-len"
        raise InputError(f"{name} is {first}; sequences of task {task.name} have at least {task.shortest} tokens")
    vocabulary, curriculum = Vocabulary(task.words), _mastery(options)
    count = max(1, options.eval_len // options.block_len)
    heldout = sequences_of(task, count, options.block_len, VALIDATION_SEED)
    return Dataset(
        tokens=vocabulary,
        blocks=GeneratedSequences(
            task, batch_size=options.batch_size, length=_lengths(options, curriculum), seed=options.seed, rows=rows
        ),
        objective=objective_of(options),
        validation=SequenceValidation(heldout),
        fingerprints=_fingerprints(vocabulary, heldout[:1]),
        summary=f"task {task.name}: {count:,} sequences of {options.block_len} held out; {_words_of(vocabulary)}",
        curriculum=curriculum,
    )


def _given(
    options: TrainOptions,
    vocabulary: Vocabulary,
    train: list[Labelled],
    heldout: list[Labelled],
    rows: range,
    name: str,
) -> Dataset:
    return Dataset(
        tokens=vocabulary,
        blocks=GivenSequences(
            train, batch_size=options.batch_size, block_len=options.block_len, seed=options.seed, rows=rows
        ),
        objective=objective_of(options),
        validation=SequenceValidation(heldout),
        fingerprints=_fingerprints(vocabulary, train, heldout),
        summary=f"{name}: {len(train):,} sequences to train on, {len(heldout):,} held out; {_words_of(vocabulary)}",
    )


def _stream(
    options: TrainOptions, vocabulary: Vocabulary, train: Labelled, heldout: Labelled, rows: range, name: str
) -> Dataset:
    counts = f"{len(train.tokens):,} tokens to train on, {len(heldout.tokens):,} held out"
    return Dataset(
        tokens=vocabulary,
        blocks=Streams(
            train.tokens,
            labels=train.labels,
            batch_size=options.batch_size,
            stages=stages(options.block_len, options.first_block_len, options.curriculum_updates),
            rows=rows,
        ),
        objective=objective_of(options),
        validation=StreamValidation(options, heldout),
        fingerprints=_fingerprints(vocabulary, [train], [heldout]),
        summary=f"{name}: {counts}; {_words_of(vocabulary)}",
    )


def _fingerprints(vocabulary: Vocabulary, *parts: list[Labelled]) -> Fingerprints:
    return Fingerprints(fingerprint(vocabulary, *parts), vocabulary.fingerprint)


def _words_of(vocabulary: Vocabulary) -> str:
    return f"{vocabulary.num_tokens:,} words"


def sequences_of(task: SequenceTask, count: int, length: int, seed: tuple[int, ...]) -> list[Labelled]:
    """`count` sequences of a task, (T,) each."""
    sample = task.sample(count, length, np.random.default_rng(seed))
    return [Labelled(*row) for row in zip(*sample, strict=True)]


def joined(sequences: Sequence[Labelled]) -> Labelled:
    """One stream of sequences that follow each other."""
    tokens, labels = (np.concatenate(parts) for parts in zip(*sequences, strict=True))
    return Labelled(tokens, labels)


def _lines(options: TrainOptions) -> tuple[list[Line], list[Line]]:
    """The lines to train on and those to hold out: the last twentieth, unless files are given."""
    lines = read_lines(options.files)
    if options.heldout:
        return lines, read_lines(options.heldout)
    count = len(lines) // HELDOUT_DIVISOR or 1
    if len(lines) == 1:
        raise InputError(f"{' '.join(options.files)!r} has one line, too few to hold one out; give more, or --heldout")
    return lines[:-count], lines[-count:]


def _words(lines: Sequence[Line]) -> set[str]:
    return {word for line in lines for word in [*line.tokens, *line.labels] if word is not None}


def _mastery(options: TrainOptions) -> Mastery | None:
    if options.mastery is None or options.first_block_len is None:
        return None
    return Mastery(
        first=options.first_block_len,
        longest=options.block_len,
        threshold=options.mastery,
        growth=options.growth,
        multiple_of=options.seq_len,
    )


def _lengths(options: TrainOptions, curriculum: Mastery | None) -> Callable[[int], int]:
    """The length of the sequences of each update."""
    if curriculum is not None:
        return lambda update: curriculum.length
    by_update = stages(options.block_len, options.first_block_len, options.curriculum_updates)
    return lambda update: block_len_at(by_update, update)
