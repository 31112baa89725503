"""The options of the commands that use a trained model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from ...errors import InputError
from ...generation import Weights
from ..schema import OptionInfo, Options, default_of, flag
from .task import check_task

Axis = Literal["update", "tokens", "seconds"]


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Options):
    """An evaluation: bits per byte of a text, or the accuracy of labels, under a trained model."""

    run: Annotated[str, OptionInfo("a RUN directory that `train` made", positional=True)]
    files: Annotated[
        list[str],
        OptionInfo(
            "what to read, in the form of the training data: files, globs, .gz, .xz, or - for standard input",
            positional=True,
        ),
    ] = dataclasses.field(default_factory=list)
    task: Annotated[
        str | None, OptionInfo("a generated task to measure accuracy on; null: the task of the RUN, if it has one")
    ] = None
    length: Annotated[
        int | None, OptionInfo("length of the sequences of a task; null: --block-len of the RUN", at_least=1)
    ] = None
    sequences: Annotated[int | None, OptionInfo("number of sequences of a task; null: 1024", at_least=1)] = None
    rows: Annotated[
        int | None,
        OptionInfo(
            "parts of a text or stream to read in parallel, each after some of the tokens that precede it; 1 reads "
            "from start to end, which is exact; null: up to 32",
            at_least=1,
        ),
    ] = None
    mem_len: Annotated[int | None, OptionInfo("memory slots M; null: as in training", at_least=1)] = None
    cache: Annotated[str | None, OptionInfo("directory that caches tokens of text; null: as in training")] = None
    weights: Annotated[
        Weights | None, OptionInfo("type to round the weights of Linears to: int8 or bfloat16; null: float32")
    ] = None
    json: Annotated[str | None, OptionInfo("a file to write the figures to")] = None
    plot: Annotated[
        str | None, OptionInfo("a PNG file for a plot of accuracy against the position in a sequence or line")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.files and self.task is not None:
            raise InputError(f"--task is {self.task!r}, and files are given too ({' '.join(self.files)}); give one")
        if self.task is not None:
            check_task(self.task)


@dataclass(frozen=True, kw_only=True)
class PlotOptions(Options):
    """A plot of several runs."""

    runs: Annotated[list[str], OptionInfo("RUN directories that `train` made", positional=True)]
    out: Annotated[str, OptionInfo("the PNG file to write")] = "runs.png"
    x: Annotated[Axis, OptionInfo("quantity on the horizontal axis")] = "update"


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(Options):
    """A continuation of a prompt, written by a trained model."""

    run: Annotated[str, OptionInfo("a RUN directory that `train` made", positional=True)]
    prompt: Annotated[
        str | None, OptionInfo("the text to continue; null: a new line, or with --load-state nothing")
    ] = None
    max_new_tokens: Annotated[int, OptionInfo("tokens to write, at most", at_least=1)] = 400
    temperature: Annotated[
        float,
        OptionInfo("temperature of sampling; lower is more predictable, 0 takes the most likely token", at_least=0),
    ] = 0.8
    top_k: Annotated[int | None, OptionInfo("sample from the k most likely tokens", at_least=1)] = None
    top_p: Annotated[
        float | None,
        OptionInfo("sample from the most likely tokens of total probability p", above=0, at_most=1),
    ] = None
    min_p: Annotated[
        float | None,
        OptionInfo("sample from the tokens at least p times as likely as the most likely one", above=0, at_most=1),
    ] = None
    repetition_penalty: Annotated[
        float, OptionInfo("above 1, tokens that are already in the text become less likely; 1 is off", above=0)
    ] = 1.0
    stop: Annotated[
        list[str], OptionInfo("strings that end the text, which stops before the first of them that occurs")
    ] = dataclasses.field(default_factory=list)
    beams: Annotated[
        int | None,
        OptionInfo("do not sample: search for the likeliest continuation with this many beams", at_least=1),
    ] = None
    seed: Annotated[
        int | None,
        OptionInfo(
            "random seed; null: another text each time, or with --load-state the text that would have followed",
            at_least=0,
            below=2**63,
        ),
    ] = None
    weights: Annotated[
        Weights | None,
        OptionInfo("for speed on a CPU, the type to round the weights of Linears to: int8 or bfloat16; null: float32"),
    ] = None
    save_state: Annotated[
        str | None, OptionInfo("a file to write the final state to; --load-state continues the text from it")
    ] = None
    load_state: Annotated[
        str | None, OptionInfo("a file that --save-state wrote; the text continues exactly from there")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt == "":
            raise InputError("--prompt is empty; give at least one character to continue")
        if "" in self.stop:
            raise InputError("--stop has an empty text; give texts of at least one character")
        if self.beams is not None:
            for field in dataclasses.fields(self):
                given = getattr(self, field.name)
                if field.name in _NOT_WITH_BEAMS and given != default_of(field):
                    raise InputError(
                        f"{flag(field.name)} is {given!r} with --beams {self.beams}, which neither samples nor has one "
                        "state; leave out one of them"
                    )


_NOT_WITH_BEAMS = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"),
    *("save_state", "load_state"),
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """A trained model as a folder that Hugging Face's transformers loads."""

    run: Annotated[str, OptionInfo("a RUN directory that `train` made on text", positional=True)]
    to: Annotated[str, OptionInfo("the directory to write, new or empty")]


@dataclass(frozen=True, kw_only=True)
class LmEvalOptions(Options):
    """Tasks of EleutherAI's lm-evaluation-harness, solved by a trained model."""

    run: Annotated[str, OptionInfo("a RUN directory that `train` made on text", positional=True)]
    tasks: Annotated[list[str], OptionInfo("names of tasks, groups or tags in --include-path")]
    include_path: Annotated[
        str, OptionInfo("a directory with the harness's YAML files of the tasks; their data must be local files")
    ]
    limit: Annotated[int | None, OptionInfo("examples of each task to use; null: all", at_least=1)] = None
    batch_size: Annotated[int, OptionInfo("texts to read at once", at_least=1)] = 8
    out: Annotated[str | None, OptionInfo("a JSON file to write the figures to")] = None


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Options):
    """A look inside a trained model: plots and a page of what it does with a passage."""

    run: Annotated[str, OptionInfo("a RUN directory that `train` made", positional=True)]
    text: Annotated[
        str | None,
        OptionInfo(
            "what the model reads, in the form of the training data: a file, which may be .gz or .xz, or - for "
            "standard input; null: a new sequence of the task of the RUN"
        ),
    ] = None
    out: Annotated[str, OptionInfo("the directory to write, new or empty")]
    tokens: Annotated[
        int | None,
        OptionInfo(
            "tokens to show; null: 256 of a text or stream, or of a sequence --block-len of the RUN", at_least=1
        ),
    ] = None
    skip: Annotated[int, OptionInfo("tokens to read before those that are shown", at_least=0)] = 0
    page: Annotated[bool, OptionInfo("write an HTML page besides the plots; it needs the extra `inspect`")] = True
