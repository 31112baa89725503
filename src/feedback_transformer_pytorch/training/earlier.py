"""What options of older versions mean today."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..config import FeedbackConfig
from ..errors import InputError
from .options import TrainOptions

# Options that older versions lacked, with what a model was without them.
EARLIER: Mapping[str, Any] = {
    **{
        name: getattr(FeedbackConfig, name)
        for name in (
            *("position", "kv", "norm", "memory_norm", "feedforward", "feedforward_dim", "output_bias", "stored"),
            *("carry", "memory_start", "adaptive_span", "span_ramp", "span_init", "span_trim", "initialisation"),
        )
    },
    **{name: getattr(TrainOptions, name) for name in ("span_loss", "task", "labelled", "mastery", "growth")},
}


def memory_norm_of(norm_memory: bool) -> str:
    """The value of `memory_norm` for one of `norm_memory`, which it was before."""
    return "plain" if norm_memory else "none"


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by the names of today.

    Raises:
        InputError: an option of an older name has a value that is not allowed, or that today's name contradicts.
    """
    others = {name: value for name, value in values.items() if name != "norm_memory"}
    if len(others) == len(values):
        return others
    given = values["norm_memory"]
    if type(given) is not bool:
        raise InputError(f"--norm-memory is {given!r}; it must be true or false, or give --memory-norm instead")
    meant = memory_norm_of(given)
    if others.setdefault("memory_norm", meant) != meant:
        raise InputError(
            f"--norm-memory is {given} and --memory-norm {others['memory_norm']!r}; the first is the older name of "
            f"--memory-norm {meant}: give one of the two"
        )
    return others


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a run by the names of today, with those that its version lacked.

    Raises:
        InputError: as `renamed` does.
    """
    return {**EARLIER, **renamed(values)}


def is_complete(values: Mapping[str, Any]) -> bool:
    """Whether `values` has all options of a run; those that older versions lacked may be missing."""
    needed = {field.name for field in dataclasses.fields(TrainOptions)} - {"out", "resume", *EARLIER}
    return values.keys() >= needed
