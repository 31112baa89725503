"""The rows of the tables: a YAML file each, with what its table sets for all of them.

A row with `windows` has each test also with memories of these lengths.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from feedback_transformer_pytorch.training.options import TrainOptions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TABLE = "table.yaml"  # what the rows of a folder share
SAVING = {"cache", "strategy", "checkpoint_every", "checkpoint_minutes", "keep", "trackers"}  # options of no effect
FIELDS = {"label", "group", "additional", "seeds", "lr", "test", "windows", "options"}


@dataclass(frozen=True)
class Row:
    """A contestant: how it is trained, with which seeds, and what it is tested on.

    Attributes:
        table: the folder of its YAML file.
        name: the name of the file.
        label: its name in the table.
        group: the part of the table that it belongs to.
        additional: whether it is run only if it is named.
        seeds: of the runs.
        lr: highest learning rates to choose from, on the first seed.
        test: see `testing.py`.
        options: of `feedback-transformer train`.
    """

    table: str
    name: str
    label: str
    group: str
    additional: bool
    seeds: list[int]
    lr: list[float]
    test: dict[str, Any]
    options: dict[str, Any]

    @property
    def result(self) -> Path:
        """The file of its results."""
        return RESULTS / self.table / f"{self.name}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """All that its results depend on."""
        return {"options": self._all_options(), "seeds": self.seeds, "lr": self.lr, "test": self.test}

    def found(self) -> dict[str, Any] | None:
        """Its results; None if it has not been run with these settings."""
        if not self.result.exists():
            return None
        found: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        return found if _what_matters(found["settings"]) == _what_matters(self.settings) else None

    def run_options(self, lr: float, seed: int, runs: Path) -> TrainOptions:
        """The options of one run. Its directory changes with the row's options."""
        out = runs / self.table / f"{self.name}-{digest(self._all_options())}" / f"lr-{lr:g}-seed-{seed}"
        return TrainOptions.from_dict({**self.options, "lr": lr, "seed": seed, "out": str(out)})

    def _all_options(self) -> dict[str, Any]:
        """The options of `train`, the defaults included, but those that differ between the runs of the row."""
        whole = TrainOptions.from_dict({**self.options, "out": "RUN"}).to_dict()
        return {name: value for name, value in whole.items() if name not in ("lr", "seed", "out")}


def _what_matters(settings: dict[str, Any]) -> dict[str, Any]:
    """Without options of no effect on results. An option that is newer than the settings has its default."""
    options = TrainOptions.from_dict({**settings["options"], "out": "RUN"}).to_dict()
    return {**settings, "options": {name: value for name, value in options.items() if name not in SAVING}}


def digest(content: Any) -> str:
    """Eight hexadecimal digits that stand for what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def tables() -> list[str]:
    """The tables, by the names of their folders, in the order of the page."""
    return sorted((path.parent.name for path in HERE.glob(f"*/{TABLE}")), key=lambda table: shared(table)["order"])


def shared(table: str) -> dict[str, Any]:
    """What the table's file says: title, text and budget for people, and defaults of the rows."""
    return _read(HERE / table / TABLE)


def rows(table: str) -> list[Row]:
    """The rows of a table, in the order of their files' names."""
    of_table = shared(table)
    return [_row(table, of_table, path) for path in sorted((HERE / table).glob("*.yaml")) if path.name != TABLE]


def _row(table: str, of_table: dict[str, Any], path: Path) -> Row:
    own = _read(path)
    unknown = own.keys() - FIELDS
    if unknown:
        raise ValueError(f"{path} has {sorted(unknown)[0]!r}; a row has {', '.join(sorted(FIELDS))}")
    groups = of_table.get("groups", {"": {}})
    group = own.get("group", "")
    if group not in groups:
        raise ValueError(f"{path} has the group {group!r}; the groups of its table are {', '.join(groups)}")
    merged = {name: own.get(name, groups[group].get(name, of_table.get(name))) for name in ("seeds", "lr", "test")}
    missing = [name for name, found in {**merged, "label": own.get("label")}.items() if found is None]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}, and neither has its group or table; give it in one of them")
    test = {
        f"{name}, M {window}": {**arguments, "mem_len": window}
        for name, arguments in merged["test"].items()
        for window in own.get("windows", [])
    }
    merged["test"] = {**merged["test"], **test}
    options = {**of_table.get("options", {}), **groups[group].get("options", {}), **own.get("options", {})}
    return Row(
        table=table,
        name=path.stem,
        label=own["label"],
        group=group,
        additional=own.get("additional", False),
        options=options,
        **merged,
    )


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return found
