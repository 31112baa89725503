"""Runs the experiments that have no results yet. It may be stopped at any time and run again: every run resumes.

    python experiments/run.py                                    all tables
    python experiments/run.py state-tracking                     one table
    python experiments/run.py state-tracking/s3-feedback-2       one row

The learning rate of a row is chosen on its first seed: that with which sequences grew longest, and among these the one
with the lowest loss at the end of training. Then the other seeds are trained with it. Rows run side by side, each on
one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from feedback_transformer_pytorch.errors import DivergedError, InputError
from feedback_transformer_pytorch.files import write_atomically
from feedback_transformer_pytorch.training.interrupt import Stopped
from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving.lock import locked
from feedback_transformer_pytorch.training.saving.run import Run

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))

from environment import describe  # noqa: E402
from rows import Row, digest, rows, tables  # noqa: E402
from testing import measure  # noqa: E402

RUNS = HERE / "runs"
LAST_INTERVALS = 10  # of training, for the loss at its end


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="TABLE or TABLE/ROW")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="rows to run side by side")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where to keep the RUN directories")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; it must be at least 1")
    todo = [row for row in chosen(options.names) if row.found() is None]
    print(f"{len(todo)} rows to run", flush=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    failed = run_side_by_side(todo, options.jobs, options.runs)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run_side_by_side(
    todo: Sequence[Row], jobs: int, runs: Path, alone: Callable[[Row, Path], None] | None = None
) -> list[str]:
    """Runs each row in a process of its own, at most `jobs` at a time. Returns the names of those that failed.

    After KeyboardInterrupt, every run saves a checkpoint and stops.

    Args:
        alone: what a process does; `run_alone` by default.
    """
    context = multiprocessing.get_context("spawn")
    waiting, failed = list(todo), []
    running: dict[int, tuple[Row, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                row = waiting.pop(0)
                process = context.Process(target=alone or run_alone, args=(row, runs))
                process.start()
                running[process.sentinel] = row, process
            for sentinel in wait(list(running)):
                row, process = running.pop(sentinel)  # type: ignore[index]
                process.join()
                if process.exitcode:
                    failed.append(f"{row.table}/{row.name}")
    except KeyboardInterrupt:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()
        sys.exit(130)
    return failed


def run_alone(row: Row, runs: Path) -> None:
    """Runs a row in a process that gets no signals of the terminal or of the group, but only those of its parent."""
    os.setpgrp()
    torch.set_num_threads(1)
    try:
        run_row(row, runs)
    except Stopped:
        pass
    except InputError as error:
        sys.exit(f"{row.table}/{row.name}: {error}")


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows that the names stand for; without names, all. Additional rows are left out unless they are named."""
    found = []
    for name in names or tables():
        table, _, row_name = name.partition("/")
        matching = [row for row in rows(table) if row_name in ("", row.name)] if table in tables() else []
        if not matching:
            raise SystemExit(f"there is no {name!r}; the tables are {', '.join(tables())}")
        found += [row for row in matching if row not in found and not (row.additional and row_name == "")]
    return found


def run_row(row: Row, runs: Path) -> None:
    """Trains all runs of a row, tests those of the chosen learning rate, and writes its results."""
    tried = {lr: trained(row, lr, row.seeds[0], runs) for lr in row.lr}
    best = min(tried, key=lambda lr: rank(tried[lr]))
    found = [tested(row, best, seed, runs) for seed in row.seeds]
    result = {
        "settings": row.settings,
        "lr": best,
        "losses_by_lr": {f"{lr:g}": of_lr["final_loss"] for lr, of_lr in tried.items()},
        "lengths_by_lr": {f"{lr:g}": of_lr["block_len"] for lr, of_lr in tried.items()},
        "runs": found,
    }
    row.result.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(row.result, (json.dumps(result, indent=1) + "\n").encode())
    print(f"{row.table}/{row.name}: done with lr {best:g}", flush=True)


def rank(run: dict[str, Any]) -> tuple[int, float]:
    """The smaller, the better a run was: by the length of its sequences, then by its loss."""
    return -(run["block_len"] or 0), math.inf if run["final_loss"] is None else run["final_loss"]


def trained(row: Row, lr: float, seed: int, runs: Path) -> dict[str, Any]:
    """What the training of a run found: trained, resumed or only read. A run that diverges has no loss."""
    options = row.run_options(lr, seed, runs)
    out = Path(options.out)
    finished = out / "result.json"
    if finished.exists():
        return read(finished)
    out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"seed": seed, "lr": lr}
    with log_of(out):
        environment = describe("cpu")
        try:
            seconds = train_timed(options)
            result |= outcome(Run.open(out), seconds)
        except DivergedError as error:
            result |= {"block_len": None, "final_loss": None, "curve": [], "diverged": str(error)}
    result |= {"date": time.strftime("%Y-%m-%d"), "environment": environment}
    write_atomically(finished, (json.dumps(result) + "\n").encode())
    return result


def tested(row: Row, lr: float, seed: int, runs: Path) -> dict[str, Any]:
    """What the training of a run and its tests found."""
    found = trained(row, lr, seed, runs)
    if "diverged" in found:
        return {**found, "test": {}}
    out = Path(row.run_options(lr, seed, runs).out)
    finished = out / f"test-{digest(row.test)}.json"
    if not finished.exists():
        with log_of(out):
            measured = measure(str(out), row.test)
        write_atomically(finished, (json.dumps(measured) + "\n").encode())
    return {**found, "test": read(finished)}


def read(path: Path) -> dict[str, Any]:
    """What a JSON file holds."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@contextlib.contextmanager
def log_of(out: Path) -> Iterator[None]:
    """What is printed goes to a file beside the run."""
    with (out.parent / f"{out.name}.log").open("a") as log, contextlib.redirect_stdout(log):
        yield


def train_timed(options: TrainOptions) -> float:
    """Trains a run to its end; returns the seconds of processor time that this took, validations and start included.

    The time before a stop counts. A run whose process was killed starts again, since its time is not known.

    Raises:
        InputError: another process trains it.
    """
    out = Path(options.out)
    path = out.parent / f"{out.name}.seconds"
    if out.exists() and not path.exists():
        with locked(out):
            shutil.rmtree(out)
    before = float(path.read_text()) if path.exists() else 0.0
    path.unlink(missing_ok=True)
    began = time.process_time()
    try:
        done = train(options)
    finally:
        seconds = before + time.process_time() - began
        path.write_text(str(seconds))
    if done.stopped_by is not None:
        raise Stopped(done.stopped_by)
    return seconds


def outcome(run: Run, seconds: float) -> dict[str, Any]:
    """What a trained run found."""
    records = run.metrics()
    validations = [record for record in records if record["kind"] == "validation"]
    intervals = [record for record in records if record["kind"] == "train"]
    last = validations[-1]
    loss = final_loss(last.get("loss", last[run.metric.name]), intervals, grown=run.options.mastery is not None)
    return {
        "parameters": sum(tensor.numel() for tensor in run.load_model(run.tokens().num_tokens).state_dict().values()),
        "updates": last["update"],
        "tokens": last["tokens"],
        "block_len": intervals[-1]["block_len"],
        "seconds": round(seconds, 2),
        "final_loss": loss if math.isfinite(loss) else None,
        "curve": [[r["update"], round(r[run.metric.name], 5)] for r in validations if run.metric.name in r],
    }


def final_loss(validation: float, intervals: Sequence[dict[str, Any]], *, grown: bool) -> float:
    """The loss at the end of training: of validation, or, if sequences grew, of the last intervals of training.

    Validation takes sequences of full length. A model that never saw them can be worse on them than by chance, which
    says nothing about its learning rate. Generated sequences are new at each update, so none is known by heart.
    """
    if not grown:
        return validation
    length = intervals[-1]["block_len"]
    return fmean(record["loss"] for record in intervals[-LAST_INTERVALS:] if record["block_len"] == length)


if __name__ == "__main__":
    main()
