"""Every hyper-parameter of the model, validated."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from .errors import InputError

Position = Literal["t5", "relative", "legacy"]


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    """Hyper-parameters of a Feedback Transformer; names and defaults are those of version 0.0.11.

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
        keep_last_hidden: store the top layer in the memory instead of the learned mix of all layers.
        norm_memory: normalise that mix before it is stored. Version 0.0.11 does not, and where segments are short its
            states may then grow from token to token without bound.
        position: what the distance between query and key adds to a score. "relative": the query times a learned vector
            of the distance, which trains best; "t5": a learned bias of the distance, the default; "legacy": the bias
            of version 0.0.11, for its checkpoints.

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
    keep_last_hidden: bool = False
    norm_memory: bool = False
    position: Position = "t5"

    def __post_init__(self) -> None:
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        for name in ("num_tokens", "dim", "depth", "mem_len", "seq_len", "heads", "dim_head", "kv_heads"):
            if name == "num_tokens" and self.num_tokens is None:
                continue
            self._require(name, "a whole number of at least 1", lambda n: type(n) is int and n >= 1)
        for name in ("attn_dropout", "ff_dropout"):
            self._require(name, "a number from 0 up to but not including 1", _is_dropout)
        for name in ("keep_last_hidden", "norm_memory"):
            self._require(name, "True or False", lambda flag: type(flag) is bool)
        self._require("position", " or ".join(map(repr, get_args(Position))), lambda p: p in get_args(Position))
        self._require("kv_heads", f"a divisor of heads={self.heads}", lambda g: self.heads % g == 0)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The config with these fields.

        Raises:
            InputError: a field is unknown, missing or out of range.
        """
        reject_unknown(set(fields) - {f.name for f in dataclasses.fields(cls)}, cls)
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in required if name not in fields]
        if missing:
            raise InputError(f"{cls.__name__} is missing {', '.join(missing)}; it needs {', '.join(required)}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain values that JSON and YAML can hold."""
        return dataclasses.asdict(self)

    @property
    def kv_dim(self) -> int:
        """Width of a memory key or value, G*E."""
        assert self.kv_heads is not None
        return self.kv_heads * self.dim_head

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward's hidden layer, F."""
        return 4 * self.dim

    def _require(self, name: str, allowed: str, test: Any) -> None:
        value = getattr(self, name)
        if not test(value):
            raise InputError(f"{name} is {value!r}; it must be {allowed}")


def _is_dropout(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def reject_unknown(names: set[str], config: type) -> None:
    """Raises InputError for the first of `names`, with the nearest field of `config`; nothing if there are none."""
    if not names:
        return
    known = [f.name for f in dataclasses.fields(config)]
    name = min(names)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    raise InputError(f"{name!r} is not a hyper-parameter of the model; {hint}")
