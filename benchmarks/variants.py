"""Times the variants of the model against the default one, by torch operations and by the kernel where it knows them.

    python benchmarks/variants.py --shape d --out benchmarks/results/variants-cpu.json

All are built in one process and timed in turns; a variant's ratio is the median of its turns' ratios to the default by
torch operations.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from environment import describe
from feedback_transformer_pytorch import FeedbackTransformer
from feedback_transformer_pytorch.recurrence import backends
from shapes import SHAPES, Shape

AUTHORS: dict[str, Any] = {
    "kv": "per_layer",
    "memory_norm": "layer",
    "position": "learned",
    "feedforward": "relu",
    "output_bias": False,
    "memory_start": "zeros",
    "carry": "state",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "kernel, default": {},
    "relative, plain norm": {"position": "relative", "memory_norm": "plain"},
    "learned": {"position": "learned"},
    "per layer": {"kv": "per_layer"},
    "post-norm": {"norm": "post"},
    "relu, 4D": {"feedforward": "relu"},
    "adaptive span, all slots": {"adaptive_span": True, "span_init": 1.0},
    "adaptive span, a quarter": {"adaptive_span": True, "span_init": 0.125, "span_ramp": 12, "span_trim": 4},
    "context of 32": {"context_dim": 256},
    "the authors'": AUTHORS,
    "the authors', one projection": AUTHORS | {"kv": "shared"},
}


class Work:
    """A variant with its input, behind a full memory."""

    def __init__(self, shape: Shape, changes: dict[str, Any], kernel: bool) -> None:
        torch.manual_seed(0)
        self.backends = list(backends.BACKENDS) if kernel else backends.BACKENDS[1:]
        self.model = FeedbackTransformer.from_config(dataclasses.replace(shape.config, **changes))
        size = (shape.batch, shape.mem_len + shape.time)
        before, self.tokens = torch.randint(shape.num_tokens, size).split([shape.mem_len, shape.time], 1)
        dim = self.model.config.context_dim
        self.context = None if dim is None else torch.randn(shape.batch, 32, dim)
        with torch.no_grad():
            _, self.memory = self.model(before, return_memory=True, context=self.context)

    def run(self) -> float:
        """Seconds of forward and backward."""
        known, backends.BACKENDS[:] = list(backends.BACKENDS), self.backends
        try:
            start = time.perf_counter()
            logits = self.model(self.tokens, self.memory, context=self.context)
            F.cross_entropy(logits.flatten(0, 1), self.tokens.flatten()).backward()
            return time.perf_counter() - start
        finally:
            backends.BACKENDS[:] = known


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="d", choices=list(SHAPES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work = {name: Work(SHAPES[options.shape], v, name.startswith("kernel")) for name, v in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for each in work.values():
        each.run()
    for _ in range(options.turns):
        for name, each in work.items():
            times[name].append(each.run())
    rows = []
    for name, seconds in times.items():
        ratio = statistics.median(s / d for s, d in zip(seconds, times["default"], strict=True))
        rows.append({"variant": name, "changes": VARIANTS[name], "seconds": seconds, "ratio": ratio})
        print(f"{name:30} {statistics.median(seconds):7.3f} s, {ratio:.2f} times the default by torch operations")
    if options.out:
        report = {"benchmark": "variants", "shape": options.shape, "environment": describe("cpu"), "results": rows}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
