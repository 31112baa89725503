"""The rows of the tables: a YAML file each, with what its table sets for all of them."""

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
FIELDS = {"label", "group", "seeds", "lr", "test", "options"}


@dataclass(frozen=True)
class Row:
    """A contestant: how it is trained, with which seeds, and what it is tested on.

    Attributes:
        table: the folder of its YAML file.
        name: the name of the file.
        label: its name in the table.
        group: the part of the table that it belongs to.
        seeds: of the runs.
        lr: highest learning rates to choose from, on the first seed.
        test: see `testing.py`.
        options: of `feedback-transformer train`.
    """

    table: str
    name: str
    label: str
    group: str
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
        return {"options": self.options, "seeds": self.seeds, "lr": self.lr, "test": self.test}

    def found(self) -> dict[str, Any] | None:
        """Its results; None if it has not been run with these settings."""
        if not self.result.exists():
            return None
        found: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        return found if found["settings"] == self.settings else None

    def run_options(self, lr: float, seed: int, runs: Path) -> TrainOptions:
        """The options of one run. Its directory changes with the row's options and tests."""
        content = json.dumps([self.options, self.test], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        out = runs / self.table / f"{self.name}-{digest}" / f"lr-{lr:g}-seed-{seed}"
        return TrainOptions.from_dict({**self.options, "lr": lr, "seed": seed, "out": str(out)})


def tables() -> list[str]:
    """The tables, by the names of their folders, in the order of the page."""
    return sorted((path.parent.name for path in HERE.glob(f"*/{TABLE}")), key=lambda table: settings(table)["order"])


def settings(table: str) -> dict[str, Any]:
    """What the table's file says: title, text and budget for people, and defaults of the rows."""
    return _read(HERE / table / TABLE)


def rows(table: str) -> list[Row]:
    """The rows of a table, in the order of their files' names."""
    shared = settings(table)
    return [_row(table, shared, path) for path in sorted((HERE / table).glob("*.yaml")) if path.name != TABLE]


def _row(table: str, shared: dict[str, Any], path: Path) -> Row:
    own = _read(path)
    unknown = own.keys() - FIELDS
    if unknown:
        raise ValueError(f"{path} has {sorted(unknown)[0]!r}; a row has {', '.join(sorted(FIELDS))}")
    group = own.get("group", "")
    of_group = shared.get("groups", {}).get(group, {})
    merged = {name: own.get(name, of_group.get(name, shared.get(name))) for name in ("seeds", "lr", "test")}
    options = {**shared.get("options", {}), **of_group.get("options", {}), **own.get("options", {})}
    return Row(table=table, name=path.stem, label=own["label"], group=group, options=options, **merged)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found
