"""Generation: the time of a token, of a prompt, and the size of the state; contestants in turns within one run.

For each shape, with a prompt of --prompt tokens read before:
  calls         this package and 0.0.11, by a call for every token, against `generate`, for one row
  weights       `generate` with the weights' types, against the time of reading them at the memory's measured rate, and
                against GPT-2 of `transformers` with as many weights, its cache unbounded or of M tokens
  transformers  the model through `generate` of `transformers` against the package's own, for one row
  prefill       reading --prefill tokens of 8 rows, against 0.0.11

"calls" leaves 0.0.11 out where segments are longer than a token: its memory knows whole ones only.

python benchmarks/generation.py --shapes b e
python benchmarks/generation.py --shapes tiny --repeats 1 --prompt 20 --prefill 32 --skip-tests --out FILE
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from contestants import build
from feedback_transformer_pytorch import FeedbackTransformer, round_weights
from feedback_transformer_pytorch.generation import Weights
from memory_rate import read_rate, weight_bytes
from options import chosen_shapes, parser, prepare
from report import print_table, write
from shapes import Shape
from writers import GPT2, Calls, Ours, ThroughTransformers, Writer, for_transformers, gpt2, in_turns, medians

ROWS = (1, 16)  # of "weights"
PREFILL_ROWS = 8

Result = dict[str, Any]


class ByCalls(FeedbackTransformer):
    """Read by calls, as a model with another `forward` is."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return super().forward(*arguments, **options)


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--repeats", type=int, default=9, help="turns of each contestant")
    options.add_argument("--tokens", type=int, default=64, help="tokens of a turn")
    options.add_argument("--prompt", type=int, default=1000, help="tokens read before")
    options.add_argument("--prefill", type=int, default=1024, help="tokens of a row in the part of that name")
    options.set_defaults(shapes=["a", "b", "e"], contestants=["reference", "fused"])
    args = options.parse_args(argv)
    prepare(args)
    results: list[Result] = []
    for shape in chosen_shapes(args):
        for part in args.parts:
            results += [{"shape": shape.name, "part": part} | found for found in PARTS[part](shape, args)]
    settings = {
        "tokens": f"{args.tokens} a turn, drawn with temperature 1, behind a prompt of {args.prompt}",
        "prefill": f"{PREFILL_ROWS} rows of {args.prefill} tokens, without gradients",
        "precision": "fp32, where no other is named",
        "repeats": args.repeats,
        "warm_up": "one turn, the prompt included",
        "statistic": "median; a ratio is one of medians within this run",
    }
    write("generation", args, settings, results)


def calls(shape: Shape, args: argparse.Namespace) -> list[Result]:
    """One row, by a call for every token and by `generate`."""
    names = [name for name in args.contestants if name != "reference" or shape.seq_len == 1]
    prompt, model = _tokens(shape, 1, args.prompt), ByCalls.from_config(shape.config)
    writers: dict[str, Writer] = {"calls": Ours(model.eval(), prompt)}
    for name in names:
        found: Any = build(name, shape).eval()
        writers[name] = Calls(found, prompt) if name == "reference" else Ours(found, prompt)
    times = in_turns(writers, args.tokens, args.repeats)
    return _reported(f"{shape.name}: {shape}, but one row", times, {"rows": 1}, {"calls": medians(times)["calls"]})


def weights(shape: Shape, args: argparse.Namespace) -> list[Result]:
    """The types of weights, and GPT-2."""
    model = FeedbackTransformer.from_config(shape.config).eval()
    kinds: dict[Weights, FeedbackTransformer] = {kind: round_weights(model, kind) for kind in get_args(Weights)}
    positions = args.prompt + (1 + args.repeats) * args.tokens
    other, results = gpt2(shape, positions), list[Result]()
    rate = read_rate()
    results.append({"memory_bytes_per_second": rate})
    print(f"\nmemory is read at {rate / 1e9:.1f} GB/s")
    for kind in kinds:
        count = weight_bytes(model, kind)
        found = {"weights": kind, "bytes": count, "bound_ms": count / rate * 1e3}
        results.append(found | {"bound_by_cached_rate_ms": count / read_rate(count) * 1e3})
        print(f"  weights in {kind}: {count / 1e6:.1f} MB, {found['bound_ms']:.3f} ms")
    for rows in ROWS:
        prompt = _tokens(shape, rows, args.prompt)
        writers: dict[str, Any] = {kind: Ours(rounded, prompt) for kind, rounded in kinds.items()}
        writers["GPT-2"] = GPT2(other, prompt)
        writers["GPT-2, window"] = GPT2(other, prompt, shape.mem_len)
        times = in_turns(writers, args.tokens, args.repeats)
        bases = {"float32": medians(times)["float32"], "bound": weight_bytes(model, "float32") / rate * 1e3}
        own = {name: {"state_bytes": writer.state_bytes()} for name, writer in writers.items()}
        results += _reported(f"{shape.name}: {shape}, but {rows} rows", times, {"rows": rows}, bases, own)
        for name, found in own.items():
            print(f"  state of {name}: {found['state_bytes'] / 1e3:,.0f} kB")
    return results


def transformers(shape: Shape, args: argparse.Namespace) -> list[Result]:
    """The same model by both functions called `generate`."""
    model, prompt = FeedbackTransformer.from_config(shape.config).eval(), _tokens(shape, 1, args.prompt)
    writers: dict[str, Writer] = {
        "generate": Ours(model, prompt),
        "transformers": ThroughTransformers(for_transformers(model), prompt),
    }
    times = in_turns(writers, args.tokens, args.repeats)
    bases = {"generate": medians(times)["generate"]}
    return _reported(f"{shape.name}: through transformers, one row", times, {"rows": 1}, bases)


def prefill(shape: Shape, args: argparse.Namespace) -> list[Result]:
    """A long text read at once, with the memory that it leaves."""
    tokens = _tokens(shape, PREFILL_ROWS, args.prefill)
    models: dict[str, nn.Module] = {name: build(name, shape).eval() for name in args.contestants}
    fused = FeedbackTransformer.from_config(shape.config).eval()
    models |= {f"fused, {kind}": round_weights(fused, kind) for kind in get_args(Weights) if kind != "float32"}
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(1 + args.repeats):
        for name, model in models.items():
            if name == "reference" and turn > max(1, args.repeats // 3):
                continue
            milliseconds = _clock(lambda model=model: model(tokens, return_memory=True)) * 1e3
            if turn > 0:
                times[name].append(milliseconds)
    bases = {name: found for name, found in medians(times).items() if name == args.contestants[0]}
    title = f"{shape.name}: {shape}, but {PREFILL_ROWS} rows of {args.prefill} tokens"
    return _reported(title, times, {"rows": PREFILL_ROWS}, bases)


PARTS = {"calls": calls, "weights": weights, "transformers": transformers, "prefill": prefill}


def _reported(
    title: str,
    times: dict[str, list[float]],
    common: Result,
    bases: dict[str, float],
    own: dict[str, Result] | None = None,
) -> list[Result]:
    """Prints a table; returns the result of each contestant.

    Args:
        times: milliseconds of every turn.
        common, own: what else belongs to all results, and to each.
        bases: milliseconds that all medians are divided by.
    """
    found = medians(times)
    rows = {name: [value, *(value / base for base in bases.values())] for name, value in found.items()}
    print_table(title, ["ms", *(f"/ {base}" for base in bases)], rows)
    results = []
    for name, value in found.items():
        ratios = {f"over_{base}": value / milliseconds for base, milliseconds in bases.items()}
        result = common | {"contestant": name, "median_ms": value} | ratios | {"times_ms": times[name]}
        results.append(result | (own or {}).get(name, {}))
    return results


def _tokens(shape: Shape, rows: int, count: int) -> Tensor:
    return torch.randint(shape.num_tokens, (rows, count))


@torch.no_grad()
def _clock(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
