"""Settings to compare, by name or from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

Settings = Mapping[str, Any]

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Runs that answer one question: each of `settings`, which are changes to the defaults, with each seed."""

    seeds: Sequence[int]
    settings: Sequence[Settings]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What can be run and compared.

    Attributes:
        name: its JSON file's name, without the suffix.
        title: one line on what it measures.
        options: a dataclass whose fields are settings.
        varied: the names of those fields that the command line has an option for.
        defaults: the values of fields for which the benchmark has another default than the dataclass.
        grids: by name.
        resolve: from changes to the defaults to all settings on which the result depends. A run is known by them.
    """

    name: str
    title: str
    options: type
    varied: Container[str]
    defaults: Settings
    grids: Mapping[str, Grid]
    resolve: Callable[[Settings], Settings]

    def parser(self) -> argparse.ArgumentParser:
        """The options of all commands: the JSON file, the grid and its seeds, and settings that hold for all of it."""
        parser = argparse.ArgumentParser(description=self.title)
        file = RESULTS / f"{self.name}.json"
        parser.add_argument(
            "--out", type=Path, default=file, help=f"JSON file; default: benchmarks/results/{file.name}"
        )
        parser.add_argument("--grid", choices=self.grids, help="settings to compare; default: the defaults alone")
        parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the grid, or 0")
        group, hints = parser.add_argument_group("settings"), get_type_hints(self.options)
        for field in self._varied():
            flag, default = "--" + field.name.replace("_", "-"), self.defaults.get(field.name, field.default)
            group.add_argument(flag, default=argparse.SUPPRESS, help=f"default: {default}", **_kind(hints[field.name]))
        return parser

    def grid(self, name: str | None, args: argparse.Namespace) -> Grid:
        """A grid, or the defaults alone, with the seeds and settings that were given in place of its own."""
        grid = self.grids[name] if name else Grid(seeds=[0], settings=[{}])
        given = {field.name: getattr(args, field.name) for field in self._varied() if hasattr(args, field.name)}
        seeds = grid.seeds if args.seeds is None else args.seeds
        return Grid(seeds=seeds, settings=[{**settings, **given} for settings in grid.settings])

    def _varied(self) -> list[dataclasses.Field[Any]]:
        return [field for field in dataclasses.fields(self.options) if field.name in self.varied]


def combinations(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Settings with every combination of the values."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def _kind(hint: Any) -> dict[str, Any]:
    """What argparse needs to read a value of this type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    return {"type": next(kind for kind in get_args(hint) or (hint,) if kind is not NoneType)}
