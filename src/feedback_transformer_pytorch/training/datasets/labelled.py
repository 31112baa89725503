"""Labelled data: the sequences or the stream of a task, or those of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...data import (
    Blocks,
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
from ...tasks import Labelled, SequenceTask, StreamTask, find_task
from ..evaluation.validation import SequenceValidation, StreamValidation, Validation
from ..objective import Labels
from ..options import TrainOptions
from ..processes import Processes
from ..saving.run import Run
from ..saving.saver import Fingerprints
from ..updates.mastery import Mastery

HELDOUT_DIVISOR = 20  # one sequence in so many is held out
# Of generated sequences. Those of training have two numbers, the seed of the run and the update, and so no third.
VALIDATION_SEED = (0, 0, 1)
TEST_SEED = (0, 0, 2)


class LabelledDataset:
    """Labels of positions. See `Dataset`.

    Args:
        run: the run that resumes, whose vocabulary is used; None for a new one.

    Raises:
        InputError: there is no such task, or a file cannot be used.
    """

    def __init__(self, options: TrainOptions, run: Run | None, processes: Processes) -> None:
        self.objective = Labels()
        self.curriculum = _mastery(options)
        rows = processes.rows(options.batch_size, options.accumulate)
        task = None if options.task is None else find_task(options.task)
        if isinstance(task, SequenceTask):
            self._use_task(options, task, rows)
        elif isinstance(task, StreamTask):
            self.tokens = Vocabulary(task.words)
            self._use_stream(options, task.stream("train"), task.stream("validation"), rows, f"task {task.name}")
        else:
            train, heldout = _lines(options)
            self.tokens = Vocabulary.of(_words(train + heldout)) if run is None else run.vocabulary()
            parts = [[line.encode(self.tokens) for line in part] for part in (train, heldout)]
            name = " ".join(options.files)
            check_labels(parts[0], name)
            check_labels(parts[1], f"what is held out of {name}")
            if options.labelled == "stream":
                self._use_stream(options, joined(parts[0]), joined(parts[1]), rows, name)
            else:
                self._use_sequences(options, parts[0], parts[1], rows, name)

    def _use_task(self, options: TrainOptions, task: SequenceTask, rows: range) -> None:
        self.tokens = Vocabulary(task.words)
        first = options.first_block_len or options.block_len
        if first < task.shortest:
            name = "--block-len" if options.first_block_len is None else "--first-block-len"
            raise InputError(f"{name} is {first}; sequences of task {task.name} have at least {task.shortest} tokens")
        count = max(1, options.eval_len // options.block_len)
        self._set(
            blocks=GeneratedSequences(
                task,
                batch_size=options.batch_size,
                length=_lengths(options, self.curriculum),
                seed=options.seed,
                rows=rows,
            ),
            validation=SequenceValidation(sequences_of(task, count, options.block_len, VALIDATION_SEED)),
            parts=[sequences_of(task, 1, options.block_len, VALIDATION_SEED)],
            summary=f"task {task.name}: {count:,} sequences of {options.block_len} held out",
        )

    def _use_sequences(
        self, options: TrainOptions, train: list[Labelled], heldout: list[Labelled], rows: range, name: str
    ) -> None:
        self._set(
            blocks=GivenSequences(
                train, batch_size=options.batch_size, block_len=options.block_len, seed=options.seed, rows=rows
            ),
            validation=SequenceValidation(heldout),
            parts=[train, heldout],
            summary=f"{name}: {len(train):,} sequences to train on, {len(heldout):,} held out",
        )

    def _use_stream(self, options: TrainOptions, train: Labelled, heldout: Labelled, rows: range, name: str) -> None:
        self._set(
            blocks=Streams(
                train.tokens,
                labels=train.labels,
                batch_size=options.batch_size,
                stages=stages(options.block_len, options.first_block_len, options.curriculum_updates),
                rows=rows,
            ),
            validation=StreamValidation(options, heldout),
            parts=[[train], [heldout]],
            summary=f"{name}: {len(train.tokens):,} tokens to train on, {len(heldout.tokens):,} held out",
        )

    def _set(self, *, blocks: Blocks, validation: Validation, parts: list[list[Labelled]], summary: str) -> None:
        self.blocks, self.validation = blocks, validation
        self.fingerprints = Fingerprints(fingerprint(self.tokens, *parts), self.tokens.fingerprint)
        self.summary = f"{summary}; {self.tokens.num_tokens:,} words"


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
