"""A Feedback Transformer beside a Transformer-XL of its size, trained on the 40 MB of Debian's dict-gcide.

Three runs of `feedback-transformer train`, one after another: the feedback model, Transformer-XL for as many updates,
and Transformer-XL for as many seconds. The throughput of the second says how many updates the third gets.

    apt-get install dict-gcide
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/gcide.py --updates 500
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from environment import describe
from feedback_transformer_pytorch.training.commands import draw_runs
from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import PlotOptions, TrainOptions
from feedback_transformer_pytorch.training.saving.run import Run

DICTIONARY = Path("/usr/share/dictd/gcide.dict.dz")
RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs"
SIZE = {
    "dim": 128, "depth": 4, "heads": 4, "dim_head": 32, "seq_len": 1, "mem_len": 128, "batch_size": 64, "block_len": 64,
    "lr": 2e-3, "warmup_updates": 100, "dropout": 0.0, "sample_len": 0, "eval_len": 131_072, "log_every": 20,
}  # fmt: skip


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    text = args.work / "gcide.txt"
    text.write_bytes(gzip.decompress(args.dictionary.read_bytes()))
    feedback = run(args, text, "feedback", "feedback", args.updates)
    same_updates = run(args, text, "transformer-xl, same updates", "transformer-xl", args.updates)
    longer = round(args.updates * feedback["seconds"] / same_updates["seconds"])
    same_time = run(args, text, "transformer-xl, same time", "transformer-xl", longer)
    results = [feedback, same_updates, same_time]
    for found in results:
        faster, bits = found["tokens_per_second"] / feedback["tokens_per_second"], found["bits_per_byte"][-1][2]
        print(f"{found['name']}: {found['updates']} updates, {faster:.2f}x, {bits:.3f} bits/byte")
    report = {"environment": describe("cpu"), "text": text.name, "bytes": text.stat().st_size, "options": SIZE}
    (RESULTS / "gcide.json").write_text(json.dumps({**report, "results": results}, indent=1) + "\n")
    for x in ("update", "seconds"):
        runs = [str(args.work / found["name"]) for found in results]
        draw_runs(PlotOptions(runs=runs, out=str(PICTURES / f"gcide-{x}.png"), x=x))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=1000, help="of the feedback model")
    parser.add_argument("--dictionary", type=Path, default=DICTIONARY)
    parser.add_argument("--work", type=Path, default=Path("gcide-runs"), help="folder for the text and the runs")
    args = parser.parse_args()
    if not args.dictionary.is_file():
        raise SystemExit(f"{args.dictionary}: no such file; install dict-gcide, or say where it is with --dictionary")
    return args


def run(args: argparse.Namespace, text: Path, name: str, model: Any, updates: int) -> dict[str, Any]:
    """Trains; returns how fast and how well.

    Raises:
        SystemExit: a signal ended training.
    """
    options = TrainOptions(
        files=[str(text)],
        out=str(args.work / name),
        cache=str(args.work / "cache"),
        model=model,
        max_updates=updates,
        eval_every=max(1, updates // 10),
        checkpoint_minutes=None,
        **SIZE,
    )
    outcome = train(options)
    if outcome.stopped_by is not None:
        raise SystemExit(f"stopped by {outcome.stopped_by.name} after update {outcome.update}")
    records = Run.open(options.out).metrics()
    trained = [record for record in records if record["kind"] == "train"]
    validated = [record for record in records if record["kind"] == "validation"]
    return {
        "name": name,
        "updates": updates,
        "tokens": trained[-1]["tokens"],
        "seconds": trained[-1]["seconds"],
        "tokens_per_second": trained[-1]["tokens"] / trained[-1]["seconds"],
        "bits_per_byte": [[record["update"], record["seconds"], record["bits_per_byte"]] for record in validated],
        "xz": records[0],
    }


if __name__ == "__main__":
    main()
