"""The table of results in the main README. overview.yaml says what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from figures import Result, formatted, value
from tables import NONE, markdown

MODELS = {"Feedback": "Feedback", "Transformer": "Transformer (-XL)"}


def overview(results: Mapping[str, Result]) -> str:
    """The table.

    Args:
        results: by TABLE/ROW. A cell without a result is a dash.
    """
    lines = [
        [line["name"], str(line.get("chance", NONE)), *(_cell(line["figures"], line[m], results) for m in MODELS)]
        for line in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    ]
    return markdown(["", "chance", *MODELS.values()], lines)


def _cell(columns: list[dict[str, Any]], shown: dict[str, str], results: Mapping[str, Result]) -> str:
    """The medians of the seeds, and the settings of the model."""
    if shown["row"] not in results:
        return NONE
    runs = results[shown["row"]].runs
    found = [([v for run in runs if (v := value(column, run)) is not None], column["format"]) for column in columns]
    medians = [formatted(median(values), form) if values else NONE for values, form in found]
    return f"{', '.join(medians)} ({shown['settings']})"
