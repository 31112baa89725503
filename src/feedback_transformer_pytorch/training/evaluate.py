"""The command `eval`: bits per byte of a text, or the accuracy of labels, under a trained model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data import Text, Tokenizer, cache_at, check_labels, read_lines, tokenize
from ..errors import InputError, MissingExtraError
from ..files import check_can_be_written, write_atomically
from ..generation import round_weights
from ..tasks import Labelled, SequenceTask, StreamTask, find_task
from .datasets.labelled import TEST_SEED, joined, sequences_of
from .evaluation.label_counts import count_sequences, count_stream
from .evaluation.measured import Measured
from .evaluation.text_bits import text_bits
from .evaluation.validation import ROWS, stream_lead, text_lead
from .evaluation.xz import XzError, xz_bits_per_byte
from .models.architectures import LanguageModel, default_device
from .options import EvalOptions
from .reporting.plots import by_position_png
from .saving.run import Run
from .schema import flag

try:
    from rich.console import Console
    from rich.progress import Progress
except ImportError as error:
    raise MissingExtraError("rich", "train") from error

SEQUENCES = 1024  # of a task
Report = Callable[[int, int | None], None]  # what is done, and of how much


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model as plain values, and as a line for people."""

    line: str
    figures: Mapping[str, Any]

    def __str__(self) -> str:
        return self.line

    def to_dict(self) -> dict[str, Any]:
        """The figures."""
        return dict(self.figures)


def evaluate_run(options: EvalOptions) -> Evaluation:
    """Measures a model in the way that it was trained: on text or on labels. Writes the files that the options name.

    Raises:
        InputError: the RUN, the data or an option cannot be used, or a file cannot be written.
    """
    for option, path in (("--json", options.json), ("--plot", options.plot)):
        check_can_be_written(option, path)
    run = Run.open(options.run)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)

        def report(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        found = _of_labels(run, options, report) if run.options.is_labelled else _of_text(run, options, report)
    if options.json is not None:
        write_atomically(Path(options.json), (json.dumps(found.to_dict(), indent=1) + "\n").encode())
    return found


def _of_text(run: Run, options: EvalOptions, report: Report) -> Evaluation:
    _refuse(options, ("task", "length", "sequences", "plot"), f"{run.path} was trained on text; give a run with labels")
    if not options.files:
        raise InputError(f"{run.path} was trained on text; give files to measure it on")
    tokenizer = run.tokenizer()
    model = _load(run, tokenizer.num_tokens, options)
    text = tokenize(
        options.files,
        tokenizer,
        text_field=run.options.text_field,
        cache=cache_at(options.cache or run.options.cache),
        on_progress=report,
    )
    lead = min(len(text.tokens) // 2, text_lead(options.mem_len or run.options.mem_len))
    rows = _rows(run, options, len(text.tokens), lead)
    found = _measure_text(run, model, tokenizer, text, rows, lead, _progress(report, len(text.tokens)))
    xz = _xz(tokenizer.decode_bytes(text.tokens))
    parts = f", in {rows} parts" if rows > 1 else ""
    reference = "failed, it needs 0.7 GB of memory" if xz is None else f"{xz:.4f}"
    return Evaluation(
        f"{_in_full(found)}{parts} (xz -9: {reference})",
        {**_by_name(found), "xz": xz, "bytes": found.sums["bytes"], "rows": rows},
    )


def _by_name(found: Measured) -> dict[str, float | None]:
    """All metrics, None for those that the data do not have."""
    return {metric.name: found.values.get(metric.name) for metric in found.objective.metrics}


def _in_full(found: Measured) -> str:
    """The metrics for people."""
    values = ((metric, found.values.get(metric.name)) for metric in found.objective.metrics)
    return ", ".join(metric.full_text(value, found.sums) for metric, value in values if value is not None)


def _xz(text: bytes) -> float | None:
    try:
        return xz_bits_per_byte(text)
    except XzError:
        return None


def _measure_text(
    run: Run,
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: Text,
    rows: int,
    lead: int,
    after_block: Callable[[int], None],
) -> Measured:
    """Measures a text, whose first token is predicted from a line break."""
    start = tokenizer.encode("\n")
    tokens = np.concatenate([start, text.tokens])
    resets = None
    if run.options.reset_documents:
        resets = np.zeros(len(tokens), np.bool_)
        resets[len(start) + text.starts] = True

    def measure(part: slice, lead: int, rows: int) -> Measured:
        return text_bits(
            model,
            run.objective,
            tokens[part],
            tokenizer,
            block_len=run.options.block_len,
            lead=lead,
            rows=rows,
            resets=None if resets is None else resets[part],
            after_block=after_block,
        )

    return _in_parts(measure, len(start), lead, rows)


def _in_parts(measure: Callable[[slice, int, int], Measured], start: int, lead: int, rows: int) -> Measured:
    """Measures data after the first `start` tokens: a function of a part, of its lead, and of the rows to read it in.

    With one row, the model reads from start to end. With more, it first reads the first `lead` tokens, then the rest in
    `rows` parts, each after the `lead` tokens before it.
    """
    if rows == 1:
        return measure(slice(None), start, 1)
    split = start + lead
    return measure(slice(split), start, 1) + measure(slice(None), split, rows)


def _of_labels(run: Run, options: EvalOptions, report: Report) -> Evaluation:
    _refuse(options, ("cache",), f"{run.path} was trained on labels, which are not cached; leave it out")
    vocabulary = run.vocabulary()
    task = _task(run, options)
    if task is not None and task.words != vocabulary.words:
        raise InputError(f"--task is {task.name!r}, whose words are not those that {run.path} was trained with")
    data: Labelled | list[Labelled]
    positions = None  # of the tokens of a stream
    if isinstance(task, SequenceTask):
        count, length = options.sequences or SEQUENCES, options.length or run.options.block_len
        data = sequences_of(task, count, length, TEST_SEED)
        name = f"{count:,} sequences of task {task.name}, length {length}"
    elif task is not None:
        _refuse(options, ("length", "sequences"), f"task {task.name!r} is one stream; leave it out")
        _refuse(options, ("plot",), f"task {task.name!r} is one stream without positions; leave it out, or give files")
        data, name = task.stream("test"), f"the test stream of task {task.name}"
    else:
        lines, name = [line.encode(vocabulary) for line in read_lines(options.files)], " ".join(options.files)
        check_labels(lines, name)
        data = lines
        if run.options.labelled == "stream" or _is_stream(run):
            data = joined(lines)
            if len(lines) > 1:
                positions = np.concatenate([np.arange(len(line.tokens)) for line in lines])
            else:
                _refuse(options, ("plot",), f"{name} is one line, read as a stream without positions; leave it out")
    if not isinstance(data, Labelled):
        _refuse(options, ("rows",), "the data are sequences, each read from start to end; leave it out")
    model = _load(run, vocabulary.num_tokens, options)
    if isinstance(data, Labelled):
        found = _measure_stream(run, model, data, positions, options, report)
    else:
        count = sum(len(sequence.tokens) for sequence in data)
        found = count_sequences(model, run.objective, data, _progress(report, count))
    by_position = found.by_position
    if options.plot is not None and by_position is not None:
        picture = by_position_png(by_position, title=f"{run.path.name}: {name}", metric=run.metric)
        write_atomically(Path(options.plot), picture)
    return Evaluation(
        f"{_in_full(found)}, loss {found.loss:.4f} nats ({name})",
        {
            "data": name,
            "labels": found.targets,
            **_by_name(found),
            "loss": found.loss,
            "by_position": by_position,
        },
    )


def _measure_stream(
    run: Run,
    model: LanguageModel,
    stream: Labelled,
    positions: npt.NDArray[np.int64] | None,
    options: EvalOptions,
    report: Report,
) -> Measured:
    lead = min(len(stream.tokens) // 2, stream_lead(options.mem_len or run.options.mem_len))
    rows = _rows(run, options, len(stream.tokens), lead)
    after_block = _progress(report, len(stream.tokens))

    def measure(part: slice, lead: int, rows: int) -> Measured:
        return count_stream(
            model,
            run.objective,
            Labelled(*(values[part] for values in stream)),
            block_len=run.options.block_len,
            lead=lead,
            rows=rows,
            positions=None if positions is None else positions[part],
            after_block=after_block,
        )

    found = _in_parts(measure, 0, lead, rows)
    if not found.targets:
        raise InputError(f"--rows is {rows}, and no label is at a position that is then counted; give --rows 1")
    return found


def _task(run: Run, options: EvalOptions) -> SequenceTask | StreamTask | None:
    """The task to measure, if no files are given."""
    if options.files:
        _refuse(options, ("length", "sequences"), "files are given; leave it out")
        return None
    name = options.task or run.options.task
    if name is None:
        raise InputError(f"{run.path} was trained on files; give files to measure it on, or a --task")
    return find_task(name)


def _refuse(options: EvalOptions, names: Sequence[str], why: str) -> None:
    """Raises InputError for the first of the options `names` that is given."""
    for name in names:
        value = getattr(options, name)
        if value is not None:
            raise InputError(f"{flag(name)} is {value!r}, but {why}")


def _is_stream(run: Run) -> bool:
    return run.options.task is not None and isinstance(find_task(run.options.task), StreamTask)


def _load(run: Run, num_tokens: int, options: EvalOptions) -> LanguageModel:
    model = run.load_model(num_tokens, options.mem_len).to(default_device())
    return model if options.weights is None else round_weights(model, options.weights)


def _rows(run: Run, options: EvalOptions, count: int, lead: int) -> int:
    """As many parts as asked for; else as many as have the length of some blocks and of the lead, at most ROWS."""
    if options.rows is None:
        return max(1, min(ROWS, (count - lead) // max(4 * run.options.block_len, lead)))
    if options.rows > max(1, count - lead):
        raise InputError(
            f"--rows is {options.rows}; the data has {count} tokens, of which {lead} are read first: "
            f"give at most {max(1, count - lead)}"
        )
    return options.rows


def _progress(report: Report, total: int) -> Callable[[int], None]:
    """A function that reports the sum of what it is called with."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    return add
