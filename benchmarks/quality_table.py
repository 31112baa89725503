"""Markdown tables of what state_tracking.py and text_quality.py found: the median over the seeds, and the range.

    python benchmarks/quality_table.py state-tracking --grid clip --figures accuracy_128 update_solved
    python benchmarks/quality_table.py text-quality --grid equal --curve bits_per_byte

The options after the name of the benchmark are those of the benchmark. Without --grid it prints a table for each grid
that has finished runs. With --curve it prints how a figure goes on over updates and seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import state_tracking
import text_quality
from grid import Settings
from runs import Run, read_runs, with_settings
from summary import spread

BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in (state_tracking, text_quality)}
LETTERS = {
    "batch_size": "B", "block_len": "T", "train_len": "T", "seq_len": "S", "mem_len": "M", "dim": "D", "depth": "L",
    "heads": "H", "dim_head": "E",
}  # fmt: skip

# Of each row: the changes to the defaults that it is about, and the runs with them, one for each seed.
Rows = Sequence[tuple[Settings, Sequence[Run]]]


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    chooser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chooser.add_argument("benchmark", choices=BENCHMARKS)
    benchmark = BENCHMARKS[chooser.parse_args(argv[:1]).benchmark]
    parser = benchmark.parser()
    parser.add_argument("--figures", nargs="+", help="columns of the table; default: all figures")
    parser.add_argument("--curve", help="a figure of the curve, to print instead")
    args = parser.parse_args(argv[1:])
    runs = read_runs(args.out)
    for name in [args.grid] if args.grid else benchmark.grids:
        grid = benchmark.grid(name, args)
        rows = [(changes, with_settings(runs, benchmark.resolve(changes), benchmark)) for changes in grid.settings]
        rows = [(changes, [run for run in found if run["seed"] in grid.seeds]) for changes, found in rows]
        rows = [(changes, found) for changes, found in rows if found]
        if rows:
            print(f"### {benchmark.name}: {name}\n\n{caption(rows)}\n")
            print("\n".join(curves(rows, args.curve) if args.curve else figures(rows, args.figures)) + "\n")


def caption(rows: Rows) -> str:
    """The settings that all rows share, and the machine."""
    changed = {name for changes, _ in rows for name in changes}
    shared = {
        name: value
        for name, value in rows[0][1][0]["settings"].items()
        if name not in changed and value not in (None, "", []) and value is not False
    }
    environments = [run["environment"] for _, found in rows for run in found]
    machines = dict.fromkeys(f"{e['cpu']}, threads: {e['threads']}, torch {e['torch']}" for e in environments)
    settings = ", ".join(f"{LETTERS.get(name, name)} {value}" for name, value in shared.items())
    return f"All rows: {settings}. Measured on {'; '.join(machines)}."


def figures(rows: Rows, chosen: Sequence[str] | None) -> list[str]:
    """A line for each of the rows, a column for each figure."""
    known = dict.fromkeys(name for _, found in rows for run in found for name in run["figures"])
    columns = list(chosen or known)
    cells = [[spread([run["figures"].get(column) for run in found], number) for column in columns] for _, found in rows]
    return table(rows, columns, cells)


def curves(rows: Rows, figure: str) -> list[str]:
    """A line for each of the rows, a column for each update that was tested: the figure, and the median seconds."""
    updates = sorted({point["update"] for _, found in rows for run in found for point in run["curve"]})
    cells = []
    for _, found in rows:
        points = [{point["update"]: point for point in run["curve"]} for run in found]
        cells.append(
            [at([by_update[update] for by_update in points if update in by_update], figure) for update in updates]
        )
    return table(rows, [f"{figure} at {update}" for update in updates], cells)


def at(points: Sequence[dict[str, Any]], figure: str) -> str:
    """A figure and its seconds at one update; the runs that ended before it are left out."""
    if not points:
        return "-"
    seconds = median(point["seconds"] for point in points)
    return f"{spread([point[figure] for point in points], number)} at {number(seconds)} s"


def table(rows: Rows, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table: the changes, the seeds, then the cells."""
    changes = list(dict.fromkeys(name for changed, _ in rows for name in changed))
    head = [*changes, "seeds", *columns]
    body = [
        [
            *(str(found[0]["settings"].get(name)) for name in changes),
            ", ".join(str(run["seed"]) for run in found),
            *line,
        ]
        for (_, found), line in zip(rows, cells, strict=True)
    ]
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)]


def number(value: float) -> str:
    """Four digits; whole numbers as they are."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


if __name__ == "__main__":
    main()
