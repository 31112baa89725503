"""Makes README.md, the plots, and the table of results in the main README from the results.

python experiments/page.py            writes them
python experiments/page.py --check    fails if they are not what the results say
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from drawing import DRAWINGS
from figures import Result, cell, core_seconds, value
from overview import overview
from rows import rows, shared, tables
from tables import markdown, with_tables

HERE = Path(__file__).parent
MAIN_README = HERE.parent / "README.md"
HEAD = """# Experiments

These tables show the gains and the costs of feedback memory. `make experiments` runs every row without an asterisk
that has no result yet. You can stop it at any time and start it again. `make experiments TABLE=controls` runs one
table and `make experiments TABLE=controls/copy-feedback` one row. Each table has a folder next to this page, with a
YAML file for each row. `python experiments/page.py` makes this page and the plots from the JSON files in `results/`.

How to read the tables:

- **A cell** is the median over the seeds, with the lowest and the highest value in brackets.
- **Learning rates**: two or three were tried for each model with the first seed; all its seeds have the best one.
  That is the one with the lowest loss in validation or, where sequences grow, with the longest sequences, and of
  those the lowest loss. Nothing else was chosen for each model: clipping and warm-up are the defaults of `train`,
  which were chosen for Feedback.
- **Rows with an asterisk** are additional. `make experiments` leaves them out, so that it takes about eight hours of
  two cores; with TABLE/ROW it runs them.
- **Times** are CPU times on one core and include validation. The Transformers run on torch operations, and most
  Feedback models on a compiled kernel, so a small Feedback model can take less time than a Transformer. The table of
  speed in the main README compares other shapes, with another position, on two cores.
- **Accuracy** at a length T is that of the last quarter of the positions up to T. "Last position with at least 90 %" is
  the last position up to which every position has an accuracy of at least 90 %.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not up to date")
    check = parser.parse_args(argv).check
    stale = [(path, content) for path, content in made().items() if not is_current(path, content)]
    if check and stale:
        names = ", ".join(str(path.relative_to(HERE.parent)) for path, _ in stale)
        sys.exit(f"not up to date: {names}; run `python experiments/page.py`")
    for path, content in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def made() -> dict[Path, bytes]:
    """The content of every file that this program writes."""
    sections, files, known, names = [], {}, {}, []
    for table in tables():
        of_table, found = shared(table), {row.name: (row, row.found()) for row in rows(table)}
        results = {name: Result(row, result) for name, (row, result) in found.items() if result is not None}
        names += [f"{table}/{name}" for name in found]
        groups = grouped(of_table, list(results.values()))
        if not groups:
            continue
        known |= {f"{table}/{name}": result for name, result in results.items()}
        section = [f"## {of_table['title']}", of_table["text"].strip()]
        section.append(f"Budget: {of_table['budget']}; all rows together {hours(results.values())}.")
        for drawing, path, title in plots(table, of_table):
            files[HERE / path] = DRAWINGS[drawing](groups)
            section.append(f"![{title}]({path})")
        section += [
            part for title, of_group in groups for part in written(title, of_group, columns(of_table, of_group))
        ]
        missing = [f"{name} *" if row.additional else name for name, (row, result) in found.items() if result is None]
        if missing:
            section.append(f"Rows without a result yet: {', '.join(missing)}.")
        machines = dict.fromkeys(machine for result in results.values() for machine in result.machines)
        section.append(f"Measured on {'; '.join(machines)}.")
        sections.append("\n\n".join(section) + "\n")
    rest = [result for result in known.values() if not result.row.additional]
    head = f"{HEAD}\nAll rows together took {hours(known.values())}; those without an asterisk {hours(rest)}.\n"
    readme = with_tables(MAIN_README.read_text(encoding="utf-8"), {"results": lambda: overview(known, names)})
    return {HERE / "README.md": "\n".join([head, *sections]).encode(), MAIN_README: readme.encode(), **files}


def plots(table: str, of_table: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The name of each drawing of a table, the path of its file, and what it shows."""
    for drawing, title in of_table.get("plots", {}).items():
        yield drawing, f"plots/{table}-{drawing}.svg", title


def hours(results: Iterable[Result]) -> str:
    """How long the runs took, those that chose the learning rates included."""
    return f"{sum(map(core_seconds, results)) / 3600:.1f} hours of one core"


def is_current(path: Path, content: bytes) -> bool:
    """Whether the file says the same: of a plot, whether it has the same digest as its title."""
    if not path.exists():
        return False
    if path.suffix != ".svg":
        return path.read_bytes() == content
    title = re.compile(rb"<dc:title>\s*(\w+)\s*</dc:title>")
    found, expected = (title.search(text) for text in (path.read_bytes(), content))
    return found is not None and expected is not None and found[1] == expected[1]


def grouped(of_table: dict[str, Any], results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """The results of each group, under its title, in the order of the table's file."""
    titles = {name: group["title"] for name, group in of_table.get("groups", {"": {"title": ""}}).items()}
    found = [(title, [result for result in results if result.row.group == name]) for name, title in titles.items()]
    return [(title, of_group) for title, of_group in found if of_group]


def columns(of_table: dict[str, Any], results: Sequence[Result]) -> list[dict[str, Any]]:
    """The columns of a group in which some row has a figure."""
    group = results[0].row.group
    of_group = [column for column in of_table["columns"] if group in column.get("groups", [group])]
    return [c for c in of_group if any(value(c, run) is not None for result in results for run in result.runs)]


def written(title: str, results: Sequence[Result], columns: Sequence[dict[str, Any]]) -> list[str]:
    """A group's heading and table."""
    head = ["model", *(column["name"] for column in columns), "learning rate", "seeds"]
    lines = [
        [
            f"{result.row.label} *" if result.row.additional else result.row.label,
            *(cell(column, result) for column in columns),
            f"{result.found['lr']:g}",
            str(len(result.runs)),
        ]
        for result in results
    ]
    table = markdown(head, lines)
    return [f"### {title}", table] if title else [table]


if __name__ == "__main__":
    main()
