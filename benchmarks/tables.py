"""The tables of speed in the README and the documentation, from what speed.py, memory.py and generation.py measured.

python benchmarks/tables.py            writes them
python benchmarks/tables.py --check    fails if they are not what the results say

A table stands between the comments `<!-- NAME: start -->` and `<!-- NAME: end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "site" / "speed.md"
NONE = "\N{EN DASH}"
PRECISIONS = ("fp32", "bf16")
LETTERS = {"B": "batch", "T": "time", "S": "seq_len", "M": "mem_len", "L": "depth", "D": "dim", "V": "num_tokens"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is not up to date")
    check = parser.parse_args(argv).check
    for path, tables in (
        (README, {"speed": speed}),
        (PAGE, {"avx2": avx2, "memory": memory, "weights": weights, "relative": relative}),
    ):
        old = path.read_text(encoding="utf-8")
        new = with_tables(old, tables)
        if check and new != old:
            sys.exit(f"{path.relative_to(ROOT)} is not up to date; run `python benchmarks/tables.py`")
        if new != old:
            path.write_text(new, encoding="utf-8")


def with_tables(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """The text with new tables between its comments."""
    for name, table in tables.items():
        start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
        head, _, rest = text.partition(start)
        _, found, tail = rest.partition(end)
        if not found:
            sys.exit(f"the text to write a table into has no {start} that {end} follows; put both back")
        text = f"{head}{start}\n\n{table()}\n\n{end}{tail}"
    return text


def speed() -> str:
    """Forward and backward: the speed over that of 0.0.11, the time over that of the parallel Transformer."""
    reports = [read(f"speed-shapes-cpu-{precision}") for precision in PRECISIONS]
    head = ["", *LETTERS, *(f"{p}: {what}" for p in PRECISIONS for what in ("speed over 0.0.11", "time over parallel"))]
    rows = []
    for name, shape in reports[0]["shapes"].items():
        found = [result(report, name, "fused")["forward_backward"] for report in reports]
        figures = [f(row) for row in found for f in (speed_over_reference, time_over_parallel)]
        rows.append([name, *(f"{shape[field]:,}" for field in LETTERS.values()), *figures])
    return markdown(head, rows)


def avx2() -> str:
    """Forward and backward in fp32 on a processor without AVX-512."""
    report = read("speed-avx2-cpu-fp32")
    rows = []
    for name in report["shapes"]:
        found = result(report, name, "fused")["forward_backward"]
        rows.append([name, speed_over_reference(found), time_over_parallel(found)])
    return markdown(["shape", "speed over 0.0.11", "time over parallel"], rows)


def speed_over_reference(row: dict[str, float]) -> str:
    return f"{1 / row['over_reference']:.1f}"


def time_over_parallel(row: dict[str, float]) -> str:
    return f"{row['over_parallel']:.2f}"


def relative() -> str:
    """The time with position "relative" over that with "t5"."""
    reports = [read(f"speed-shapes-cpu-{precision}") for precision in PRECISIONS]
    rows = []
    for name in reports[0]["shapes"]:
        pairs = [[seconds(report, name, who) for who in ("fused-relative", "fused")] for report in reports]
        rows.append([name, *(f"{ours / base:.2f}" for ours, base in pairs)])
    return markdown(["shape", *PRECISIONS], rows)


def memory() -> str:
    """Peak memory of an update, and the time of a generated token."""
    peaks, tokens = read("memory-shapes-cpu"), read("generation-shapes-cpu")
    rows = [
        [
            "peak RAM of an update, shape b, MiB",
            *(f"{result(peaks, 'b', who)['peak_mib']:,.0f}" for who in ("fused", "reference", "parallel")),
        ],
        *(
            [
                f"a generated token, model of shape {shape}, ms",
                *(f"{result(tokens, shape, who)['median_ms']:.1f}" for who in ("fused", "reference")),
                NONE,
            ]
            for shape in ("b", "e")
        ),
    ]
    return markdown(["", "this package", "0.0.11", "parallel Transformer"], rows)


def weights() -> str:
    """Generation with weights of fewer bytes, beside GPT-2 of `transformers`."""
    found = [row for row in read("generation-weights-cpu")["results"] if row["part"] == "weights"]
    names = {name: f"this package, weights in {name}" for name in ("float32", "bfloat16", "int8")}
    names |= {"GPT-2": "GPT-2, whole cache", "GPT-2, window": "GPT-2, cache of M tokens"}
    rows = []
    for name, shown in names.items():
        own = {row["rows"]: row for row in found if row.get("contestant") == name}
        times = [f"{own[count]['median_ms']:.2f}" for count in (1, 16)]
        rows.append([shown, *times, f"{own[1]['state_bytes'] / 1e6:.2f}"])
    return markdown(["", "one row, ms per token", "16 rows, ms per token", "state, MB per row"], rows)


def read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return report


def result(report: dict[str, Any], shape: str, contestant: str) -> dict[str, Any]:
    """The figures of a contestant at a shape."""
    return next(row for row in report["results"] if (row["shape"], row["contestant"]) == (shape, contestant))


def seconds(report: dict[str, Any], shape: str, contestant: str) -> float:
    return float(result(report, shape, contestant)["forward_backward"]["median_s"])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return re.sub(r"\|  +\|", "| |", "\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
