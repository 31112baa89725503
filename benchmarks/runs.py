"""The finished runs of a training benchmark, in a JSON file.

The file is a list, one run a line, in an order that depends on settings and seeds alone. A run that it holds is not
done a second time, so a benchmark that was interrupted goes on where it stopped. Several processes may add to one file
at the same time, for example with other seeds.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from environment import describe
from feedback_transformer_pytorch.files import write_atomically
from grid import Benchmark, Settings

Run = dict[str, Any]


def run_benchmark(
    benchmark: Benchmark, train: Callable[[Settings, int], dict[str, Any]], argv: Sequence[str] | None
) -> None:
    """Trains what the command line asks for and the file does not hold yet: all settings with one seed, then the next.

    Args:
        train: from all settings and a seed to what was found: `figures`, a number for each name, and `curve`, a list
            of such figures by update.
    """
    parser = benchmark.parser()
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    environment = describe("cpu")  # compiles the kernel, so that this does not count as training
    grid = benchmark.grid(args.grid, args)
    for seed in grid.seeds:
        for changes in grid.settings:
            settings = benchmark.resolve(changes)
            name = " ".join(f"{name}={value}" for name, value in {**changes, "seed": seed}.items())
            if any(run["seed"] == seed for run in with_settings(read_runs(args.out), settings, benchmark)):
                print(f"{name}: already in {args.out.name}", flush=True)
                continue
            found = only_finite(train(settings, seed))
            add_run(args.out, {"settings": settings, "seed": seed, "environment": environment, **found})
            print(f"{name}: {json.dumps(found['figures'])}", flush=True)


def read_runs(path: Path) -> list[Run]:
    """The runs of a file; none if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else []


def add_run(path: Path, run: Run) -> None:
    """Adds a run to the file, while no other process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        write_runs(path, [*read_runs(path), run])
    finally:
        os.close(folder)


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Replaces the file."""
    ordered = sorted(runs, key=lambda run: (json.dumps(run["settings"], sort_keys=True), run["seed"]))
    lines = ",\n".join(json.dumps(run, allow_nan=False) for run in ordered)
    write_atomically(path, f"[\n{lines}\n]\n".encode())


def with_settings(runs: Sequence[Run], settings: Settings, benchmark: Benchmark) -> list[Run]:
    """The runs with exactly these settings, by seed. A setting that is newer than a run has its default there."""
    found = (run for run in runs if benchmark.resolve(run["settings"]) == settings)
    return sorted(found, key=lambda run: run["seed"])


def only_finite(value: Any) -> Any:
    """The same value, with None for every number that JSON does not have: infinities and NaN."""
    if isinstance(value, dict):
        return {name: only_finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [only_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def gradient_norms(norms: Sequence[float]) -> dict[str, float | None]:
    """Median, 99 % quantile and maximum of those gradient norms that are finite."""
    finite = sorted(norm for norm in norms if math.isfinite(norm))
    if not finite:
        return dict.fromkeys(("grad_norm_median", "grad_norm_99", "grad_norm_max"))
    nearest_rank = finite[math.ceil(0.99 * len(finite)) - 1]
    return {"grad_norm_median": median(finite), "grad_norm_99": nearest_rank, "grad_norm_max": finite[-1]}
