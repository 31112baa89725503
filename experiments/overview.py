"""The table of results in the main README. overview.yaml says what it shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from figures import Result, formatted
from tables import NONE, markdown

ARCHITECTURE = re.compile(r"(Feedback|Transformer-XL|Transformer)(?: \(-XL\))?(?:, )?(?:in the time of Feedback)?")
MODELS = {"Feedback": "Feedback", "Transformer": "Transformer (-XL)"}


def overview(results: Mapping[str, Result], names: Sequence[str]) -> str:
    """The table.

    Args:
        results: by TABLE/ROW.
        names: of all rows, also of those without a result.

    Raises:
        ValueError: a pattern names no row.
    """
    return markdown(
        ["", "chance", *MODELS.values()],
        [
            [line["name"], str(line.get("chance", NONE)), *(_cell(line, model, results, names) for model in MODELS)]
            for line in lines()
        ],
    )


def lines() -> list[dict[str, Any]]:
    """What overview.yaml says, a mapping for each line of the table."""
    found: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return found


def best(columns: Sequence[dict[str, Any]], results: Sequence[Result]) -> Result:
    """The result with the best mean of its medians; of equally good ones that with the fewest parameters.

    A result that lacks a figure, because all its seeds diverged, comes last.
    """

    def rank(result: Result) -> tuple[float, float]:
        if not all(map(result.values, columns)):
            return -math.inf, 0.0
        figures = [(median(result.values(column)), column["format"]) for column in columns]
        signed = [-figure if form == "bits" else figure for figure, form in figures]
        return round(fmean(signed), 3), -median(result.values({"show": "parameters"}) or [0.0])

    return max(results, key=rank)


def _cell(line: dict[str, Any], model: str, results: Mapping[str, Result], names: Sequence[str]) -> str:
    """The medians of the seeds, and the settings of the model; a dash if no row has a result."""
    matching = [name for name in names if fnmatchcase(name, line[model])]
    if not matching:
        raise ValueError(f"overview.yaml has {line[model]!r} for {line['name']!r}, which names no row")
    found = [results[name] for name in matching if name in results]
    if not found:
        return NONE
    chosen = best(line["figures"], found)
    medians = [(result, column["format"]) for column in line["figures"] if (result := chosen.values(column))]
    text = ", ".join(formatted(median(values), form) for values, form in medians)
    return f"{text} ({settings(chosen)})"


def settings(result: Result) -> str:
    """What the label says besides the architecture, which the column names, and the layers."""
    match = ARCHITECTURE.match(result.row.label)
    if match is None:
        raise ValueError(f"the label {result.row.label!r} does not begin with an architecture")
    depth, rest = f"L {result.row.options['depth']}", result.row.label[match.end() :]
    parts = ["XL"] if match[1] == "Transformer-XL" else []
    parts += [rest] if rest.startswith(depth) else [depth, *filter(None, [rest])]
    return ", ".join(parts)
