"""How options are declared: a flat dataclass for each command, whose values are checked.

The name of a field, with hyphens, is the option's name on the command line; `OptionInfo` holds the rest.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from ..config import hint_of
from ..errors import InputError


@dataclass(frozen=True)
class OptionInfo:
    """What the command line needs to know about an option besides its name, type and default.

    Attributes:
        help: its line in `--help`.
        positional: it is given by position, not by name.
        begins: the heading of a group in `--help` that begins with it.
        at_least, above, below, at_most: limits of its value.
    """

    help: str
    positional: bool = False
    begins: str | None = None
    at_least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf

    def allows(self, value: float) -> bool:
        """Whether the value lies in the range; a range excludes infinities and NaN."""
        bounds = self._bounds()
        return not bounds or (math.isfinite(value) and all(test(value, bound) for test, bound in bounds.values()))

    def range(self) -> str:
        """The range in words."""
        return " and ".join(f"{words} {bound:g}" for words, (_, bound) in self._bounds().items())

    def _bounds(self) -> dict[str, tuple[Any, float]]:
        bounds = {
            "at least": (operator.ge, self.at_least),
            "above": (operator.gt, self.above),
            "below": (operator.lt, self.below),
            "at most": (operator.le, self.at_most),
        }
        return {words: (test, bound) for words, (test, bound) in bounds.items() if math.isfinite(bound)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checks every field against its type and its range.

    Raises:
        InputError: names the option, the value and what is allowed.
    """

    def __post_init__(self) -> None:
        hints, infos = get_type_hints(type(self)), self.infos()
        for name, hint in hints.items():
            value = getattr(self, name)
            if not _fits(value, hint):
                raise InputError(f"{flag(name)} is {value!r}; it must be {_describe(hint)}")
            if value is not None and not infos[name].allows(value):
                raise InputError(f"{flag(name)} is {value!r}; it must be {infos[name].range()}")

    @classmethod
    def infos(cls) -> dict[str, OptionInfo]:
        """The `OptionInfo` of each option, by name."""
        hints = get_type_hints(cls, include_extras=True)
        return {name: hint.__metadata__[0] for name, hint in hints.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The options with these values.

        Raises:
            InputError: a name is unknown, a required one is missing, or a value is not allowed.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [name for name in values if name not in fields]
        if unknown:
            raise InputError(f"{unknown[0]!r} is not an option; {hint_of(str(unknown[0]), list(fields))}")
        missing = [name for name, field in fields.items() if is_required(field) and name not in values]
        if missing:
            raise InputError(f"{flag(missing[0])} is missing; give it")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All options, as plain values that JSON and YAML can hold."""
        return dataclasses.asdict(self)


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field that has one."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether the field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


_UNIONS = (Union, UnionType)  # what `a | b` is depends on a and b


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) in _UNIONS:
        return " or ".join(map(_describe, get_args(hint)))
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        list[str]: "a list of texts",
        NoneType: "null",
    }
    return words[hint]


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in _UNIONS:
        return any(_fits(value, choice) for choice in get_args(hint))
    if hint == list[str]:
        return isinstance(value, list) and all(type(item) is str for item in value)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint
