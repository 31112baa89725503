"""Every hyperparameter of the model, validated."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, Literal, Self, TypeVar, get_args

from .activation import ACTIVATIONS
from .errors import InputError
from .position import POSITIONS

KeyValues = Literal["shared", "per_layer"]
NormPlacement = Literal["pre", "post"]
MemoryNorm = Literal["none", "plain", "layer"]
MemoryStart = Literal["empty", "zeros"]
Carry = Literal["keys", "state", "normed_state"]
Stored = Literal["mix", "top"]
Initialisation = Literal["torch", "authors"]

_Class = TypeVar("_Class", bound=type)


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    """Hyperparameters of a Feedback Transformer; names and defaults are those of version 0.0.11 where it has them.

    Attributes:
        num_tokens: vocabulary size V; None for a decoder that has no tokens.
        dim: model width D.
        depth: number of layers L.
        mem_len: memory slots M; a query sees the last M tokens before its segment.
        seq_len: tokens in a segment S. With 1, every layer of a token sees the top of the token before (the
            paper's model).
        heads: query heads H.
        dim_head: head width E.
        kv_heads: key/value heads G, a divisor of `heads`; None means `heads`.
        attn_dropout: dropout on the attention probabilities.
        ff_dropout: dropout inside the feed-forward.
        keep_last_hidden: True is another way to write stored="top", as in version 0.0.11.
        norm_memory: True is another way to write memory_norm="plain".
        position: what the distance between query and key adds to a score, a name in `position.POSITIONS`. "relative":
            the query times a learned vector of the distance's bucket, which trains best; "learned": the same with a
            vector for each distance, the paper authors'; "t5": a learned bias of the bucket, the default; "legacy":
            the bias of version 0.0.11, for its checkpoints.
        kv: "shared": one projection makes the keys and values of all layers; "per_layer": each layer has its own.
        norm: where a sub-layer's norm stands. "pre": x + f(norm(x)), and a norm after the last layer;
            "post": norm(x + f(x)).
        memory_norm: what a memory slot passes through before its keys and values are made. "plain": a LayerNorm without
            parameters; "layer": the attention norm of the layer that reads it, as the paper authors have it. With
            kv="shared" that norm, like the projection, is then one for all layers. With "none", the default, states may
            grow from token to token without bound where segments are short.
        feedforward: the feed-forward's activation, a name in `activation.ACTIVATIONS`.
        feedforward_dim: width F of the feed-forward's hidden layer; None means 4 * dim.
        output_bias: whether attention's output projection has a bias.
        stored: what the memory stores of a token: "mix", the learned mix of the states of all layers; "top", the last
            layer's; a number from 0 (the embedding) to `depth`: that layer's.
        carry: what a call passes on to the next. "keys": keys and values; "state": the stored states, from which the
            next call makes keys and values with the weights that the model has then. "normed_state": states after the
            first layer's attention norm, as the paper authors' code has it, for their checkpoints; a later call norms
            them a second time.
        memory_start: "empty", or "zeros": M zero states precede every document, and are attended to.
        adaptive_span: each head learns how far back it attends (Sukhbaatar et al. 2019, arXiv 1905.07799).
        span_ramp: over how many distances the span's mask falls from 1 to 0.
        span_init: the span at the start, as a part of `mem_len`.
        span_trim: an adaptive span leaves out slots that no head of any layer sees, in steps of this many.
        context_dim: width C of a context that every layer also attends to (a decoder of a translation model); None for
            no context.
        initialisation: "torch", or "authors": the last Linear of every sub-layer is divided by sqrt(2 * depth).

    Raises:
        InputError: names the field, its value and what is allowed.
    """

    num_tokens: int | None = None
    dim: int
    depth: int
    mem_len: int
    seq_len: int = 2
    heads: int = 8
    dim_head: int = 64
    kv_heads: int | None = None
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    keep_last_hidden: InitVar[bool | None] = None
    norm_memory: InitVar[bool | None] = None
    position: str = "t5"
    kv: KeyValues = "shared"
    norm: NormPlacement = "pre"
    memory_norm: MemoryNorm = "none"
    feedforward: str = "geglu"
    feedforward_dim: int | None = None
    output_bias: bool = True
    stored: Stored | int = "mix"
    carry: Carry = "keys"
    memory_start: MemoryStart = "empty"
    adaptive_span: bool = False
    span_ramp: float = 32
    span_init: float = 0.0
    span_trim: int = 64
    context_dim: int | None = None
    initialisation: Initialisation = "torch"

    def __post_init__(self, keep_last_hidden: bool | None, norm_memory: bool | None) -> None:
        self._other_name("keep_last_hidden", keep_last_hidden, "stored", "top", "mix")
        self._other_name("norm_memory", norm_memory, "memory_norm", "plain", "none")
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        self._check_values()
        self._check_combinations()
        for name in ("attn_dropout", "ff_dropout", "span_ramp", "span_init"):
            object.__setattr__(self, name, float(getattr(self, name)))  # a 0 given makes the same modules as 0.0

    def _other_name(self, name: str, value: bool | None, field: str, true: str, false: str) -> None:
        """Takes the value of a field that was given by another name."""
        if value is None:
            return
        if type(value) is not bool:
            raise InputError(f"{name} is {value!r}; it must be True or False")
        given, meant = getattr(self, field), true if value else false
        if given not in (false, meant):
            raise InputError(f"{name}={value} means {field}={meant!r}, but {field} is {given!r}; give one of the two")
        object.__setattr__(self, field, meant)

    def _check_values(self) -> None:
        counts = ["num_tokens", "dim", "depth", "mem_len", "seq_len", "heads", "dim_head", "kv_heads"]
        for name in (*counts, "feedforward_dim", "span_trim", "context_dim"):
            if name in ("num_tokens", "feedforward_dim", "context_dim") and getattr(self, name) is None:
                continue
            self._require(name, "a whole number of at least 1", lambda n: type(n) is int and n >= 1)
        for name in ("attn_dropout", "ff_dropout"):
            self._require(name, "a number from 0 up to but not including 1", _is_dropout)
        self._require("span_init", "a number from 0 to 1", lambda n: type(n) in (int, float) and 0 <= n <= 1)
        self._require("span_ramp", "a number above 0", lambda n: type(n) in (int, float) and n > 0)
        for name in ("output_bias", "adaptive_span"):
            self._require(name, "True or False", lambda flag: type(flag) is bool)
        for name, choices in _CHOICES.items():
            words = " or ".join(map(repr, choices))
            self._require(name, words, lambda choice, choices=choices: isinstance(choice, str) and choice in choices)
        stored = f"'mix' or 'top' or a layer from 0 to depth={self.depth}"
        self._require("stored", stored, lambda s: s in get_args(Stored) or (type(s) is int and 0 <= s <= self.depth))
        self._require("kv_heads", f"a divisor of heads={self.heads}", lambda g: self.heads % g == 0)

    def _check_combinations(self) -> None:
        if self.memory_norm == "layer" and self.norm == "post":
            raise InputError(
                "memory_norm='layer' goes with norm='pre', where a layer's norm is what its attention reads through; "
                "with norm='post' use memory_norm 'none' or 'plain'"
            )
        if self.adaptive_span and not POSITIONS[self.position].counts_memory:
            raise InputError(
                f"adaptive_span measures true distances, which position={self.position!r} does not have; use "
                "'learned', 'relative' or 't5'"
            )
        if self.carry == "normed_state" and self.memory_norm != "layer":
            raise InputError(f"carry='normed_state' goes with memory_norm='layer'; memory_norm is {self.memory_norm!r}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The config with these fields.

        Raises:
            InputError: a field is unknown, missing or out of range.
        """
        reject_unknown(set(fields) - set(hyperparameters_of(cls)), cls)
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in required if name not in fields]
        if missing:
            raise InputError(f"{cls.__name__} is missing {', '.join(missing)}; it needs {', '.join(required)}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain values that JSON and YAML can hold."""
        return dataclasses.asdict(self)

    @property
    def vocab_size(self) -> int:
        """Number of tokens V, of a model that has them."""
        assert self.num_tokens is not None
        return self.num_tokens

    @property
    def groups(self) -> int:
        """Key/value heads G, each of a group of query heads."""
        assert self.kv_heads is not None  # it was filled in
        return self.kv_heads

    @property
    def kv_dim(self) -> int:
        """Width of a key or value, G*E."""
        return self.groups * self.dim_head

    @property
    def banks(self) -> int:
        """Banks of keys and values K: one for all layers, or one for each."""
        return 1 if self.kv == "shared" else self.depth

    @property
    def memory_dim(self) -> int:
        """Width of the keys, or of the values, of a memory slot in all banks, K*G*E."""
        return self.banks * self.kv_dim

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward's hidden layer, F."""
        return self.feedforward_dim or 4 * self.dim

    @property
    def shares_norm(self) -> bool:
        """Whether one attention norm serves all layers, as the projection behind it does."""
        return self.kv == "shared" and self.memory_norm == "layer"

    def _require(self, name: str, allowed: str, test: Any) -> None:
        value = getattr(self, name)
        if not test(value):
            raise InputError(f"{name} is {value!r}; it must be {allowed}")


# A trace notices when a value in a tuple changes, and not when an object does; so configurations enter it as tuples.
FIELD_NAMES = tuple(field.name for field in dataclasses.fields(FeedbackConfig))


def fields_of(config: FeedbackConfig) -> tuple[Any, ...]:
    """All hyperparameters, as values of which a trace notices a change."""
    return tuple(getattr(config, name) for name in FIELD_NAMES)


def config_of(fields: tuple[Any, ...]) -> FeedbackConfig:
    """The configuration of which `fields_of` gave these values."""
    return FeedbackConfig.from_dict(dict(zip(FIELD_NAMES, fields, strict=True)))


_CHOICES: Mapping[str, Collection[str]] = {
    "position": POSITIONS,
    "feedforward": ACTIVATIONS,
    "kv": get_args(KeyValues),
    "norm": get_args(NormPlacement),
    "memory_norm": get_args(MemoryNorm),
    "carry": get_args(Carry),
    "memory_start": get_args(MemoryStart),
    "initialisation": get_args(Initialisation),
}


def _is_dropout(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def hyperparameters_of(config: type) -> dict[str, inspect.Parameter]:
    """What the constructor of a configuration takes, by name."""
    return dict(inspect.signature(config).parameters)


def takes_hyperparameters(*, needs_tokens: bool) -> Callable[[_Class], _Class]:
    """A decorator: gives a model's class the signature of its options and of all hyperparameters, for help and for
    editors. A model that does not need tokens has no `num_tokens`."""

    def decorate(cls: _Class) -> _Class:
        own = [p for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
        known = [p for p in hyperparameters_of(FeedbackConfig).values() if p.name != "num_tokens" or needs_tokens]
        known = [p.replace(default=p.empty) if p.name == "num_tokens" else p for p in known]
        cls.__signature__ = inspect.Signature([*known, *own])  # type: ignore[attr-defined]
        return cls

    return decorate


def reject_unknown(names: set[str], config: type) -> None:
    """Raises InputError for the first of `names`, with the nearest field of `config`; nothing if there are none."""
    if not names:
        return
    known = list(hyperparameters_of(config))
    name = min(names)
    raise InputError(f"{name!r} is not a hyperparameter of the model; {hint_of(name, known)}")


def hint_of(name: str, known: Sequence[str]) -> str:
    """The end of an error about an unknown name: the nearest of the known ones, or all if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
