"""Time of forward, and of forward and backward, of all contestants in turns within one run.

python benchmarks/speed.py --shapes b c --precision fp32
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from contestants import takes_part
from options import chosen_shapes, parser, prepare
from report import print_table, ratios, write
from shapes import Shape
from workload import Workload

SLOW = ("reference", "stepwise")
KINDS = ("forward", "forward_backward")
FIGURES = ("median_s", "over_reference", "over_parallel")
COLUMNS = ("forward s", "/ reference", "/ parallel", "fwd+bwd s", "/ reference", "/ parallel")

Times = dict[str, list[float]]  # seconds of every run, by contestant


def main() -> None:
    options = parser(__doc__.splitlines()[0], ["cpu", "cuda"])
    options.add_argument("--repeats", type=int, default=9, help="timed runs of each; the slow ones get a third")
    args = options.parse_args()
    prepare(args)
    results = []
    for shape in chosen_shapes(args):
        names = [name for name in args.contestants if takes_part(name, shape)]
        for precision in args.precision:
            times = measure(names, shape, precision, args.device, args.repeats)
            found = {name: {kind: summary(name, times[kind]) for kind in KINDS} for name in names}
            rows = {name: [found[name][kind][figure] for kind in KINDS for figure in FIGURES] for name in names}
            print_table(f"{shape.name}: {shape}, {precision}", COLUMNS, rows)
            results += [{"shape": shape.name, "precision": precision, "contestant": n} | found[n] for n in names]
    settings = {
        "forward": "without a graph, as in evaluation",
        "forward_backward": "logits, cross entropy, all gradients",
        "memory": "full: what the contestant left after reading M other tokens; none for the parallel Transformer",
        "repeats": {name: repeats_of(name, args.repeats) for name in args.contestants},
        "warm_up": 1,
        "statistic": "median; a ratio is one of medians within this run",
    }
    write("speed", args, settings, results)


def repeats_of(contestant: str, repeats: int) -> int:
    return max(1, repeats // 3) if contestant in SLOW else repeats


def measure(names: list[str], shape: Shape, precision: str, device: str, repeats: int) -> dict[str, Times]:
    """Times by kind. The contestants take turns, so that what else the machine does falls on all of them."""
    workloads = {name: Workload(name, shape, precision, device) for name in names}
    times: dict[str, Times] = {kind: {name: [] for name in names} for kind in KINDS}
    for turn in range(1 + repeats):
        for name, workload in workloads.items():
            if turn > repeats_of(name, repeats):
                continue
            for kind in KINDS:
                seconds = clock(getattr(workload, kind), device)
                if turn > 0:  # the first is the warm-up
                    times[kind][name].append(seconds)
            workload.model.zero_grad()
    return times


def clock(run: Callable[[], None], device: str) -> float:
    """Seconds until the work is done."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def summary(name: str, times: Times) -> dict[str, Any]:
    medians = {other: median(seconds) for other, seconds in times.items()}
    return {"median_s": medians[name], **ratios(name, medians), "times_s": times[name]}


if __name__ == "__main__":
    main()
