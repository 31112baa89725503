"""What a measurement leaves: a table on the terminal and a JSON file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from environment import describe
from options import chosen_shapes

RESULTS = Path(__file__).parent / "results"


def ratios(contestant: str, values: Mapping[str, float | None]) -> dict[str, float | None]:
    """A contestant's value over that of version 0.0.11 and of the parallel Transformer; None where one is missing."""
    value = values[contestant]
    bases = {name: values.get(name) for name in ("reference", "parallel")}
    return {f"over_{name}": value / base if value and base else None for name, base in bases.items()}


def print_table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> None:
    print(f"\n{title}")
    print(" " * 16 + "".join(f"{column:>15}" for column in columns))
    for name, numbers in rows.items():
        print(f"{name:16}" + "".join(f"{'-' if n is None else format(n, '.3f'):>15}" for n in numbers))


def write(benchmark: str, args: argparse.Namespace, settings: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """The JSON file: what was measured, how, on what."""
    series = "scaling" if args.scaling else "shapes"
    out: Path = args.out or RESULTS / f"{benchmark}-{series}-{args.device}.json"
    report = {
        "benchmark": benchmark,
        "environment": describe(args.device),
        "settings": {"tests_skipped": args.skip_tests} | settings,
        "shapes": {shape.name: vars(shape) for shape in chosen_shapes(args)},
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {out}")
