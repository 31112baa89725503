"""Runs the experiments that have no results yet. It may be stopped at any time and run again: every run resumes.

    python experiments/run.py                                    all tables
    python experiments/run.py state-tracking                     one table
    python experiments/run.py state-tracking/s3-feedback-2       one row

The learning rate of a row is chosen on its first seed, by the validation loss at the end of training. Then the other
seeds are trained with it. Rows run side by side, each on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from feedback_transformer_pytorch.errors import DivergedError
from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving.run import Run

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))

from environment import describe  # noqa: E402
from rows import Row, rows, tables  # noqa: E402
from testing import measure  # noqa: E402

RUNS = HERE / "runs"


class Stopped(Exception):  # noqa: N818 (the user's request, not an error)
    """A signal ended a run."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="TABLE or TABLE/ROW")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="rows to run side by side")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where to keep the RUN directories")
    options = parser.parse_args(argv)
    todo = [row for row in chosen(options.names) if row.found() is None]
    print(f"{len(todo)} rows to run", flush=True)
    if options.jobs == 1:
        for row in todo:
            run_row(row, options.runs)
        return
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        waiting = [pool.apply_async(run_row, (row, options.runs), error_callback=partial(report, row)) for row in todo]
        for result in waiting:
            result.get()


def report(row: Row, error: BaseException) -> None:
    """Says at once that a row failed; the others go on."""
    print(f"{row.table}/{row.name}: failed with {error!r}", flush=True)


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows that the names stand for; all without names."""
    found = []
    for name in names or tables():
        table, _, row_name = name.partition("/")
        matching = [row for row in rows(table) if row_name in ("", row.name)] if table in tables() else []
        if not matching:
            raise SystemExit(f"there is no {name!r}; the tables are {', '.join(tables())}")
        found += matching
    return found


def run_row(row: Row, runs: Path) -> None:
    """Trains and tests all runs of a row, and writes its results."""
    torch.set_num_threads(1)
    first = row.seeds[0]
    trained = {lr: run_once(row, lr, first, runs) for lr in row.lr}
    losses = {lr: found["validation_loss"] for lr, found in trained.items()}
    best = min(losses, key=lambda lr: math.inf if losses[lr] is None else losses[lr])
    found = [trained[best], *(run_once(row, best, seed, runs) for seed in row.seeds[1:])]
    result = {
        "label": row.label,
        "group": row.group,
        "settings": row.settings,
        "lr": best,
        "losses_by_lr": {f"{lr:g}": loss for lr, loss in losses.items()},
        "runs": found,
        "environment": describe("cpu"),
    }
    row.result.parent.mkdir(parents=True, exist_ok=True)
    row.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{row.table}/{row.name}: done with lr {best:g}", flush=True)


def run_once(row: Row, lr: float, seed: int, runs: Path) -> dict[str, Any]:
    """One run: trained, resumed or only read. A run that diverges has no loss."""
    options = row.run_options(lr, seed, runs)
    out = Path(options.out)
    finished = out / "result.json"
    if finished.exists():
        found: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        return found
    out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"seed": seed, "lr": lr}
    with (out.parent / f"{out.name}.log").open("a") as log, contextlib.redirect_stdout(log):
        try:
            seconds = train_timed(options)
            result |= figures(Run.open(out), seconds, row.test)
        except DivergedError as error:
            result |= {"validation_loss": None, "curve": [], "test": {}, "diverged": str(error)}
    finished.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return result


def train_timed(options: TrainOptions) -> float:
    """Trains a run to its end; returns the seconds that one core computed for it, also before it was interrupted."""
    out = Path(options.out)
    path = out.parent / f"{out.name}.seconds"
    before = float(path.read_text()) if path.exists() else 0.0
    began = time.process_time()
    try:
        outcome = train(options)
    finally:
        path.write_text(str(before + time.process_time() - began))
    if outcome.stopped_by is not None:
        raise Stopped
    return float(path.read_text())


def figures(run: Run, seconds: float, test: dict[str, Any]) -> dict[str, Any]:
    """What a trained run found. Times on its curves are scaled to `seconds`, those of one core."""
    records = run.metrics()
    validations = [record for record in records if record["kind"] == "validation"]
    intervals = [record for record in records if record["kind"] == "train"]
    last = validations[-1]
    scale = seconds / last["seconds"]
    loss = last.get("loss", last[run.metric.name])
    return {
        "parameters": sum(tensor.numel() for tensor in run.load_model(run.tokens().num_tokens).state_dict().values()),
        "updates": last["update"],
        "tokens": last["tokens"],
        "block_len": intervals[-1]["block_len"],
        "seconds": round(seconds, 2),
        "validation_loss": loss if math.isfinite(loss) else None,
        "curve": curve(validations, run.metric.name, scale),
        "test": measure(str(run.path), test),
    }


def curve(records: Sequence[dict[str, Any]], metric: str, scale: float) -> list[list[float]]:
    """[update, seconds, metric] of each record that has it."""
    return [[r["update"], round(scale * r["seconds"], 2), round(r[metric], 5)] for r in records if metric in r]


if __name__ == "__main__":
    main()
