"""The options of `train`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from ...config import Initialisation, KeyValues, MemoryNorm, MemoryStart, NormPlacement, Stored
from ...data import stages
from ...decoder import Implementation
from ...errors import InputError
from ...tasks import SequenceTask, find_task, task_names
from ..schema import OptionInfo, Options, flag
from .presets import preset_summaries
from .task import check_task

Model = Literal["feedback", "parallel", "transformer-xl"]
Position = Literal["relative", "t5", "learned"]
Feedforward = Literal["geglu", "relu"]
Carry = Literal["keys", "state"]
Precision = Literal["fp32", "bf16"]
Strategy = Literal["ddp", "fsdp"]
Decay = Literal["cosine", "none"]
LabelledForm = Literal["sequences", "stream"]

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """A training run: the options of `feedback-transformer train`, by their names with underscores instead of hyphens.

    `out` is required. The defaults suit about 2 MB of text, and take less than ten minutes on two cores.

    Raises:
        InputError: names the option, the value and what is allowed.
    """

    files: Annotated[
        list[str],
        OptionInfo(
            "data to train on: text, .jsonl, .gz and .xz files, globs, saved datasets, or - for standard input; "
            "none: the English text in Python's standard library",
            positional=True,
        ),
    ] = dataclasses.field(default_factory=list)
    out: Annotated[str, OptionInfo("the RUN directory to create or to resume", begins="run")]
    resume: Annotated[bool, OptionInfo("resume the run in --out with its options")] = False
    preset: Annotated[str | None, OptionInfo(f"a set of options to start from: {preset_summaries()}")] = None
    heldout: Annotated[
        list[str], OptionInfo("data to validate on; none: the end of the training data is held out", begins="data")
    ] = dataclasses.field(default_factory=list)
    task: Annotated[
        str | None, OptionInfo(f"a generated task to learn instead of files: {', '.join(task_names())}")
    ] = None
    labelled: Annotated[
        LabelledForm | None,
        OptionInfo(
            'the files hold lines {"tokens": [...], "labels": [...]}, which are independent sequences (sequences) or '
            "parts of one stream (stream); null: the files hold text"
        ),
    ] = None
    text_field: Annotated[str, OptionInfo("field that holds the text in .jsonl files and saved datasets")] = "text"
    reset_documents: Annotated[bool, OptionInfo("empty the memory where a document begins: a file, line or row")] = (
        False
    )
    tokenizer: Annotated[str, OptionInfo("bytes, or a tokenizer.json that `tokenizer train` made")] = "bytes"
    cache: Annotated[
        str | None, OptionInfo("directory that caches tokens; null: feedback-transformer in the user's cache directory")
    ] = None
    model: Annotated[Model, OptionInfo("the architecture", begins="model")] = "feedback"
    init_from: Annotated[str | None, OptionInfo("a RUN that provides the initial weights, of any --model")] = None
    dim: Annotated[int, OptionInfo("model width D", at_least=1)] = 256
    depth: Annotated[int, OptionInfo("layers L", at_least=1)] = 4
    heads: Annotated[int, OptionInfo("query heads H", at_least=1)] = 4
    dim_head: Annotated[int, OptionInfo("head width E", at_least=1)] = 64
    kv_heads: Annotated[
        int | None, OptionInfo("key/value heads G, a divisor of --heads; null: the same number", at_least=1)
    ] = None
    seq_len: Annotated[
        int,
        OptionInfo(
            "tokens in a segment (S), computed at once; 1 is the paper's model, and best at tracking a state",
            at_least=1,
        ),
    ] = 1
    mem_len: Annotated[int, OptionInfo("memory slots M: how many tokens back attention reaches", at_least=1)] = 128
    position: Annotated[
        Position,
        OptionInfo(
            "how the distance of a key enters attention: the query times a vector for each bucket of distances "
            "(relative) or for each distance (learned, the paper's), or a bias for each bucket (t5)"
        ),
    ] = "relative"
    kv: Annotated[KeyValues, OptionInfo("keys and values: one projection for all layers, or one for each layer")] = (
        "shared"
    )
    norm: Annotated[
        NormPlacement, OptionInfo("LayerNorm before each sub-layer (pre), or after its residual connection (post)")
    ] = "pre"
    memory_norm: Annotated[
        MemoryNorm,
        OptionInfo(
            "what the memory passes through before keys and values are made: nothing, as in version 0.0.11 (none), a "
            "LayerNorm without parameters (plain), or the norm of the layer that reads it (layer, the paper's)"
        ),
    ] = "plain"
    feedforward: Annotated[Feedforward, OptionInfo("the feed-forward's activation; the paper's is relu")] = "geglu"
    feedforward_dim: Annotated[
        int | None, OptionInfo("width of the feed-forward's hidden layer; null: 4 times --dim", at_least=1)
    ] = None
    output_bias: Annotated[bool, OptionInfo("attention's output projection has a bias")] = True
    stored: Annotated[
        Stored | int,
        OptionInfo(
            "what the memory stores: mix (of all layers), top (layer), or a layer from 0 (embedding) to --depth"
        ),
    ] = "mix"
    carry: Annotated[
        Carry,
        OptionInfo(
            "what an update passes on: keys and values (keys), or states, from which the next update makes keys and "
            "values (state)"
        ),
    ] = "keys"
    memory_start: Annotated[
        MemoryStart, OptionInfo("the memory starts empty, or with states of zeros (the paper's)")
    ] = "empty"
    adaptive_span: Annotated[bool, OptionInfo("each head learns how far back it attends, up to --mem-len")] = False
    span_ramp: Annotated[int, OptionInfo("distances over which an adaptive span fades out", at_least=1)] = 32
    span_init: Annotated[
        float, OptionInfo("adaptive spans at the start, as a fraction of --mem-len", at_least=0, at_most=1)
    ] = 0.0
    span_trim: Annotated[
        int, OptionInfo("slots beyond all adaptive spans are left out, in multiples of this number", at_least=1)
    ] = 64
    span_loss: Annotated[
        float,
        OptionInfo(
            "weight in the loss of the size of adaptive spans: the mean of each layer in tokens, summed over layers",
            at_least=0,
        ),
    ] = 2e-6
    initialisation: Annotated[
        Initialisation,
        OptionInfo("PyTorch's (torch), or the last matrix of each sub-layer divided by sqrt(2 * depth) (authors)"),
    ] = "torch"
    dropout: Annotated[float, OptionInfo("dropout probability in attention and feed-forwards", at_least=0, below=1)] = (
        0.1
    )
    max_updates: Annotated[int, OptionInfo("number of weight updates", at_least=1, begins="optimisation")] = 1200
    batch_size: Annotated[
        int,
        OptionInfo("rows B, read in parallel, over all processes: streams of text, or labelled sequences", at_least=1),
    ] = 32
    accumulate: Annotated[
        int, OptionInfo("gradient accumulation: groups of rows, which an update reads one after another", at_least=1)
    ] = 1
    block_len: Annotated[
        int,
        OptionInfo(
            "tokens of each row in an update (T), a multiple of --seq-len; the greatest length of labelled sequences",
            at_least=1,
        ),
    ] = 64
    first_block_len: Annotated[
        int | None,
        OptionInfo(
            "tokens of each row at the start; they double up to --block-len, or grow as --mastery says; null: off",
            at_least=1,
        ),
    ] = None
    curriculum_updates: Annotated[
        int, OptionInfo("updates in which blocks grow from --first-block-len to --block-len", at_least=0)
    ] = 0
    mastery: Annotated[
        float | None,
        OptionInfo(
            "the sequences of a task grow from --first-block-len whenever the running accuracy of their last labels "
            "reaches this; null: off",
            above=0,
            below=1,
        ),
    ] = None
    growth: Annotated[float, OptionInfo("factor by which sequences grow with --mastery", at_least=1)] = 1.25
    lr: Annotated[float, OptionInfo("highest learning rate", above=0)] = 2e-3
    warmup_updates: Annotated[
        int, OptionInfo("first updates, in which the learning rate rises to --lr", at_least=0)
    ] = 100
    lr_decay: Annotated[
        Decay, OptionInfo("learning rate after the warm-up: a half cosine to a tenth of --lr, or constant")
    ] = "cosine"
    weight_decay: Annotated[float, OptionInfo("decoupled weight decay, for matrices only", at_least=0)] = 0.1
    clip: Annotated[float, OptionInfo("norm to which larger gradients are clipped", above=0)] = 0.1
    max_skipped: Annotated[
        int,
        OptionInfo("updates in a row that may be skipped because the loss or the gradient is not finite", at_least=0),
    ] = 10
    seed: Annotated[
        int,
        OptionInfo(
            "random seed of initialisation, dropout, samples and the sequences of a task", at_least=0, below=2**32
        ),
    ] = 0
    implementation: Annotated[
        Implementation,
        OptionInfo(
            "auto and fused: the fast implementation where it applies; stepwise: the slow definition", begins="machine"
        ),
    ] = "auto"
    recompute: Annotated[bool, OptionInfo("use less RAM and more time: recompute values in the backward pass")] = False
    compile: Annotated[bool, OptionInfo("use torch.compile; for --model parallel and transformer-xl only")] = False
    precision: Annotated[Precision, OptionInfo("precision of the model's arithmetic; weights are always fp32")] = "fp32"
    strategy: Annotated[Strategy, OptionInfo("each process holds the whole model (ddp) or a part of it (fsdp)")] = "ddp"
    eval_every: Annotated[
        int, OptionInfo("updates between validations, which save checkpoints", at_least=1, begins="evaluation")
    ] = 300
    eval_len: Annotated[
        int,
        OptionInfo(
            "tokens of the held-out data that a validation reads; labelled sequences from files are all read",
            at_least=2,
        ),
    ] = 65536
    sample_len: Annotated[int, OptionInfo("tokens of the sample text that each validation generates", at_least=0)] = 200
    log_every: Annotated[int, OptionInfo("updates between lines of training metrics", at_least=1)] = 50
    checkpoint_every: Annotated[
        int | None,
        OptionInfo("updates between additional checkpoints; null: none", at_least=1, begins="saving and reporting"),
    ] = None
    checkpoint_minutes: Annotated[
        float | None, OptionInfo("minutes after which an additional checkpoint is saved; null: never", above=0)
    ] = 10.0
    keep: Annotated[
        int, OptionInfo("how many of the newest checkpoints to keep, besides the best by validation", at_least=1)
    ] = 2
    trackers: Annotated[list[str], OptionInfo(f"where to log in addition to metrics.jsonl: {', '.join(TRACKERS)}")] = (
        dataclasses.field(default_factory=list)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("block_len", "first_block_len"):
            length = getattr(self, name)
            if length is not None and length % self.seq_len:
                raise InputError(
                    f"{flag(name)} is {length}; it must be a multiple of --seq-len {self.seq_len}, "
                    "so that blocks end where segments end"
                )
        if self.first_block_len is None and self.curriculum_updates:
            raise InputError(f"--curriculum-updates is {self.curriculum_updates} without --first-block-len; give both")
        self._check_data()
        self._check_mastery()
        if self.compile and self.model == "feedback":
            raise InputError(
                "--compile is given with --model feedback, whose recurrence it does not speed up; leave it out, or "
                "choose --model parallel or transformer-xl"
            )
        if self.mastery is None:
            stages(self.block_len, self.first_block_len, self.curriculum_updates)
        if self.batch_size % self.accumulate:
            raise InputError(f"--accumulate is {self.accumulate}; it must divide --batch-size {self.batch_size}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise InputError(f"--kv-heads is {self.kv_heads}; it must divide --heads {self.heads}")
        if isinstance(self.stored, int) and not 0 <= self.stored <= self.depth:
            raise InputError(
                f"--stored is {self.stored}; it must be mix, top, or a layer from 0 to --depth {self.depth}"
            )
        unknown = [tracker for tracker in self.trackers if tracker not in TRACKERS]
        if unknown:
            raise InputError(f"--trackers has {unknown[0]!r}; it must be one of {', '.join(TRACKERS)}")

    @property
    def is_labelled(self) -> bool:
        """Whether the model learns labels of positions, not the next tokens of text."""
        return self.task is not None or self.labelled is not None

    @property
    def cut_short(self) -> list[str]:
        """What the run is too short for, in words for its user."""
        lines = []
        if self.warmup_updates > self.max_updates:
            lines.append(
                f"the learning rate does not reach --lr {self.lr:g}: --warmup-updates {self.warmup_updates} is above "
                f"--max-updates {self.max_updates}"
            )
        if self.curriculum_updates >= self.max_updates:
            lines.append(
                f"blocks do not reach --block-len {self.block_len}: --curriculum-updates {self.curriculum_updates} is "
                f"not below --max-updates {self.max_updates}"
            )
        return lines

    def _check_data(self) -> None:
        if self.task is not None:
            check_task(self.task)
            for name, given in (("files", self.files), ("--heldout", self.heldout), ("--labelled", self.labelled)):
                if given:
                    raise InputError(f"--task is {self.task!r}, which needs no data, but {name} is {given!r}; give one")
        if self.labelled is not None and not self.files:
            raise InputError(f"--labelled is {self.labelled!r} without files; give files of JSON lines, or a --task")
        if self.labelled == "sequences" and self.first_block_len is not None:
            raise InputError(
                f"--first-block-len is {self.first_block_len}, but sequences of files have lengths of their own; "
                "leave it out"
            )
        if self.is_labelled:
            for name, default in (("tokenizer", "bytes"), ("reset_documents", False)):
                value = getattr(self, name)
                if value != default:
                    raise InputError(
                        f"{flag(name)} is {value!r}, but this is for text, and the data has labels; leave it out"
                    )

    def _check_mastery(self) -> None:
        if self.mastery is None:
            return
        if self.task is None:
            raise InputError(f"--mastery is {self.mastery} without --task; give both")
        if self.first_block_len is None:
            raise InputError(f"--mastery is {self.mastery} without --first-block-len; give both")
        if self.curriculum_updates:
            raise InputError(
                f"--mastery is {self.mastery}, and --curriculum-updates is {self.curriculum_updates} too; give one"
            )
        if not isinstance(find_task(self.task), SequenceTask):
            raise InputError(f"--mastery is {self.mastery}, but task {self.task!r} is one stream; leave it out")
        if self.first_block_len > self.block_len:
            raise InputError(
                f"--first-block-len is {self.first_block_len}; it must be at most --block-len {self.block_len}"
            )
