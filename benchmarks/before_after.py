"""Times two versions of the package against each other: pairs in turns, and the median ratio with its interval.

    python benchmarks/before_after.py BEFORE AFTER --out benchmarks/results/speed-parts-cpu.json

BEFORE and AFTER are source folders (`src` of two checkouts). Each turn starts one process for each, in alternating
order, which times every shape a few times and gives its least time. The interval is that of the median of the turns'
ratios at 95 %, from the binomial distribution of ranks.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environment import commit, describe

WAYS = ("kernel", "torch")
SWITCH = "FEEDBACK_TRANSFORMER_NATIVE"


def measure(shapes: list[str], precision: str, repeats: int) -> dict[str, float]:
    """The least time of forward and backward in seconds, by shape, of the package that is imported here."""
    from shapes import SHAPES
    from workload import Workload

    found = {}
    for name in shapes:
        work = Workload("fused", SHAPES[name], precision, "cpu")
        work.forward_backward()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work.forward_backward()
            times.append(time.perf_counter() - start)
        found[name] = min(times)
    return found


def interval(ratios: list[float]) -> tuple[float, float]:
    """The interval of the median at 95 % or more; for that it takes six ratios."""
    count = len(ratios)
    below = 0.0
    rank = 0
    while below + math.comb(count, rank) / 2**count <= 0.025:
        below += math.comb(count, rank) / 2**count
        rank += 1
    ordered = sorted(ratios)
    return ordered[max(0, rank - 1)], ordered[min(count - 1, count - rank)]


def run(source: str, way: str, shapes: list[str], precision: str, repeats: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(Path(__file__).parent)])}
    if way == "torch":
        environment[SWITCH] = "0"
    command = [sys.executable, __file__, "--measure", *shapes, "--precision", precision, "--repeats", str(repeats)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sources", nargs="*", help="BEFORE and AFTER")
    parser.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--shapes", nargs="*", default=["a", "b", "c", "d", "e"])
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.precision, options.repeats)))
        return
    if len(options.sources) != 2 or options.turns < 6:
        parser.error("give BEFORE and AFTER, and at least six --turns, without which there is no interval of 95 %")
    before, after = options.sources
    results: list[dict[str, Any]] = []
    for way in options.ways:
        times: dict[str, list[tuple[float, float]]] = {shape: [] for shape in options.shapes}
        for turn in range(options.turns):
            order = (before, after) if turn % 2 == 0 else (after, before)
            found = {s: run(s, way, options.shapes, options.precision, options.repeats) for s in order}
            for shape in options.shapes:
                times[shape].append((found[before][shape], found[after][shape]))
        for shape, pairs in times.items():
            ratios = [b / a for a, b in pairs]
            low, high = interval(ratios)
            row = {
                "way": way,
                "shape": shape,
                "seconds": pairs,
                "ratio": statistics.median(ratios),
                "low": low,
                "high": high,
            }
            results.append(row)
            print(f"{way:7} {shape:14} after/before {row['ratio']:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    if options.out:
        report = {
            "benchmark": "before and after",
            "environment": describe("cpu"),
            "before": commit(Path(before)),
            "after": commit(Path(after)),
            **{name: getattr(options, name) for name in ("precision", "turns", "repeats")},
        }
        options.out.write_text(json.dumps(report | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
