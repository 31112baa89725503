"""How well text is learned with the defaults of `feedback-transformer train`, and with other values of them.

Each run trains on the English that Python carries, at a small size. What SIZE does not name has the default of `train`,
so these defaults are what is tested. The seed changes initialisation and dropout; all runs read the same text in the
same order.

    python benchmarks/text_quality.py --grid equal
    python benchmarks/text_quality.py --model feedback --lr 4e-3 --clip 0.1 --seeds 0 1 2
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

import feedback_transformer_pytorch.training.loop as training
from feedback_transformer_pytorch.training.options import TrainOptions, preset_file
from feedback_transformer_pytorch.training.saving.run import Run, fixed_options
from grid import Benchmark, Grid, Settings, combinations
from runs import gradient_norms, run_benchmark

SIZE: dict[str, Any] = {
    "dim": 128, "depth": 3, "heads": 4, "dim_head": 32, "seq_len": 1, "mem_len": 48, "batch_size": 16, "block_len": 48,
    "lr": 2e-3, "max_updates": 600, "eval_every": 200, "sample_len": 0, "checkpoint_minutes": None,
    "log_every": 1,  # so that metrics.jsonl has the loss and the gradient norm of each update
    "max_skipped": 10**6,  # a run that diverges is a result, not an error
}  # fmt: skip
VARIED = {
    *("model", "position", "depth", "memory_norm", "dropout", "max_updates"),
    *("lr", "warmup_updates", "lr_decay", "weight_decay", "clip"),
}
MODELS = ["feedback", "transformer-xl"]
TINY, DEMO = (yaml.safe_load(preset_file(name).read_text()) for name in ("tiny", "demo"))
GRIDS = {
    "equal": Grid(range(3), combinations(model=MODELS)),
    "position": Grid(range(3), combinations(model=MODELS, position=["relative", "t5"])),
    "lr": Grid([0], combinations(model=MODELS, lr=[1e-3, 2e-3, 4e-3, 8e-3])),
    "clip": Grid([0], combinations(model=MODELS, clip=[0.1, 0.3, 1.0, 3.0])),
    "warmup": Grid([0], combinations(model=MODELS, warmup_updates=[0, 20, 100, 240])),
    "decay": Grid([0], combinations(model=MODELS, weight_decay=[0.0, 0.01, 0.1])),
    "schedule": Grid([0], combinations(model=MODELS, lr_decay=["cosine", "none"])),
    "dropout": Grid([0], combinations(model=MODELS, dropout=[0.0, 0.1])),
    "norm": Grid([0], combinations(memory_norm=["plain", "none"])),
    "tiny": Grid([0], [{**TINY, **changes} for changes in combinations(seq_len=[1, 8], lr=[4e-3, 8e-3])]),
    "demo": Grid([0], [{**DEMO, **changes} for changes in combinations(lr=[2e-3, 4e-3, 6e-3])]),
}


def resolve(changes: Settings) -> Settings:
    """All options on which the result depends but the seed, from those that differ from SIZE and `train`'s defaults."""
    settings = fixed_options(TrainOptions.from_dict({"out": "", **SIZE, **changes}))
    del settings["seed"]
    return settings


BENCHMARK = Benchmark(
    name="text-quality",
    title=__doc__.splitlines()[0],
    options=TrainOptions,
    varied=VARIED,
    defaults=SIZE,
    grids=GRIDS,
    resolve=resolve,
)


def main(argv: Sequence[str] | None = None) -> None:
    run_benchmark(BENCHMARK, train, argv)


def train(settings: Settings, seed: int) -> dict[str, Any]:
    """One run, in a directory that is deleted afterwards.

    Raises:
        SystemExit: a signal ended training.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions.from_dict({**SIZE, **settings, "seed": seed, "out": str(Path(folder) / "run")})
        with contextlib.redirect_stdout(io.StringIO()):
            outcome = training.train(options)
        if outcome.stopped_by is not None:
            raise SystemExit(f"stopped by {outcome.stopped_by.name} after update {outcome.update}")
        run = Run.open(options.out)
        model = run.load_model(run.tokenizer().num_tokens)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return summarise(run.metrics(), options.max_updates, parameters)


def summarise(records: Sequence[dict[str, Any]], updates: int, parameters: int) -> dict[str, Any]:
    """The figures of a run, from the lines of its metrics.jsonl. `seconds` are those of training alone."""
    learned = [record for record in records if record["kind"] == "train"]
    curve = [
        {name: record[name] for name in ("update", "seconds", "bits_per_byte")}
        for record in records
        if record["kind"] == "validation"
    ]
    since = curve[-2]["update"] if len(curve) > 1 else 0
    losses = [record["loss"] for record in learned if record["update"] > since]
    figures = {
        **{f"bits_per_byte_{point['update']}": point["bits_per_byte"] for point in curve},
        f"loss_{since + 1}_{updates}": fmean(losses) if losses else None,
        **gradient_norms([record["grad_norm"] for record in learned]),
        "skipped": updates - len(learned),
        "seconds": curve[-1]["seconds"],
        "seconds_per_update": curve[-1]["seconds"] / updates,
        "parameters": parameters,
    }
    return {"figures": figures, "curve": curve}


if __name__ == "__main__":
    main()
