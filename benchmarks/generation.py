"""Time of a token in generation for one row, the contestants in turns within one run.

"calls" is the model of "fused" with a call for every token, as a loop of one's own would have it.

python benchmarks/generation.py --shapes b e
"""

from __future__ import annotations

import dataclasses
import time
from statistics import median

import torch
from torch import nn

from contestants import build
from feedback_transformer_pytorch import FeedbackTransformer, generate
from options import chosen_shapes, parser, prepare
from report import print_table, write
from shapes import Shape

CONTESTANTS = ("calls", "fused", "parallel")
COLUMNS = ("ms a token", "/ calls", "/ parallel")
PROMPT, DRAWN = 16, 256  # tokens


class Calls(FeedbackTransformer):
    """Not a `FeedbackTransformer` itself, and so read by calls."""


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    options.set_defaults(shapes=["a", "b", "e"], contestants=[])
    args = options.parse_args()
    prepare(args)
    results = []
    for shape in chosen_shapes(args):
        times = measure(dataclasses.replace(shape, batch=1), args.repeats)
        medians = {name: median(found) for name, found in times.items()}
        rows = {name: [own, own / medians["calls"], own / medians["parallel"]] for name, own in medians.items()}
        print_table(f"{shape.name}: {shape}, S {shape.seq_len}, but one row", COLUMNS, rows)
        for name, row in rows.items():
            figures = dict(zip(("median_ms", "over_calls", "over_parallel"), row, strict=True))
            results.append({"shape": shape.name, "contestant": name, **figures, "times_ms": times[name]})
    settings = {
        "rows": 1,
        "tokens": f"{DRAWN} drawn with temperature 1 after a prompt of {PROMPT}; set-up and prompt included",
        "precision": "fp32",
        "repeats": args.repeats,
        "warm_up": 1,
        "statistic": "median; a ratio is one of medians within this run",
    }
    write("generation", args, settings, results)


def measure(shape: Shape, repeats: int) -> dict[str, list[float]]:
    """Milliseconds a token of every run, by contestant."""
    models: dict[str, nn.Module] = {
        "calls": Calls.from_config(shape.config),
        **{name: build(name, shape) for name in CONTESTANTS[1:]},
    }
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    prompt = torch.randint(shape.num_tokens, (1, PROMPT))
    for turn in range(1 + repeats):
        for name, model in models.items():
            start = time.perf_counter()
            for _ in generate(model.eval(), prompt, max_new_tokens=DRAWN):
                pass
            if turn > 0:  # the first is the warm-up
                times[name].append((time.perf_counter() - start) / DRAWN * 1e3)
    return times


if __name__ == "__main__":
    main()
