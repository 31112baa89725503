"""Time of a token in generation for one row, the contestants in turns within one run.

"calls" is the model of "fused" with a call for every token, which is how 0.0.11 is used. That is left out where
segments are longer than a token: its memory knows whole ones only.

python benchmarks/generation.py --shapes b e
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from contestants import build
from feedback_transformer_pytorch import FeedbackTransformer, generate
from feedback_transformer_pytorch.generation import Sampling
from options import chosen_shapes, parser, prepare
from report import print_table, write
from shapes import Shape

COLUMNS = ("ms a token", "/ calls")
PROMPT, DRAWN = 16, 256  # tokens


class Calls(FeedbackTransformer):
    """Read by calls, as a model with another `forward` is."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return super().forward(*arguments, **options)


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    options.set_defaults(shapes=["a", "b", "e"], contestants=["reference", "fused"])
    args = options.parse_args()
    prepare(args)
    results = []
    for shape in chosen_shapes(args):
        models = contestants(dataclasses.replace(shape, batch=1), args.contestants)
        times = measure(models, shape.num_tokens, args.repeats)
        medians = {name: median(found) for name, found in times.items()}
        rows = {name: [own, own / medians["calls"]] for name, own in medians.items()}
        print_table(f"{shape.name}: {shape}, S {shape.seq_len}, but one row", COLUMNS, rows)
        for name, (own, ratio) in rows.items():
            found = {"median_ms": own, "over_calls": ratio, "times_ms": times[name]}
            results.append({"shape": shape.name, "contestant": name} | found)
    settings = {
        "rows": 1,
        "tokens": f"{DRAWN} drawn with temperature 1 after a prompt of {PROMPT}; set-up and prompt included",
        "precision": "fp32",
        "repeats": args.repeats,
        "warm_up": 1,
        "statistic": "median; a ratio is one of medians within this run",
    }
    write("generation", args, settings, results)


def contestants(shape: Shape, names: list[str]) -> dict[str, nn.Module]:
    """The models by name, for evaluation."""
    models: dict[str, nn.Module] = {"calls": Calls.from_config(shape.config)}
    models |= {name: build(name, shape) for name in names if name != "reference" or shape.seq_len == 1}
    return {name: model.eval() for name, model in models.items()}


def measure(models: dict[str, nn.Module], num_tokens: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds a token of every run, by contestant."""
    times: dict[str, list[float]] = {name: [] for name in models}
    prompt = torch.randint(num_tokens, (1, PROMPT))
    for turn in range(1 + repeats):
        for name, model in models.items():
            start = time.perf_counter()
            for _ in by_calls(model, prompt) if name == "reference" else written(model, prompt):
                pass
            if turn > 0:  # the first is the warm-up
                times[name].append((time.perf_counter() - start) / DRAWN * 1e3)
    return times


def written(model: Any, prompt: Tensor) -> Iterator[Tensor]:
    """By this package."""
    return generate(model, prompt, max_new_tokens=DRAWN)


@torch.no_grad()
def by_calls(model: nn.Module, tokens: Tensor) -> Iterator[Tensor]:
    """By a loop of one's own, which 0.0.11 leaves to its user."""
    memory = None
    for _ in range(DRAWN):
        logits, memory = model(tokens, memory, return_memory=True)
        token = Sampling().draw(logits[:, -1])
        yield token
        tokens = token[:, None]


if __name__ == "__main__":
    main()
