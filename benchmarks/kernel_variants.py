"""Time of the compiled kernel beside other ways that the same machine can take, in turns within one run.

python benchmarks/kernel_variants.py --shapes b c e
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from statistics import median
from unittest.mock import patch

from feedback_transformer_pytorch.recurrence.layout import precision as precisions
from feedback_transformer_pytorch.recurrence.native import applicability, kernel
from feedback_transformer_pytorch.recurrence.native.library import library
from options import chosen_shapes, parser, prepare
from report import print_table, write
from shapes import Shape
from speed import KINDS, Times, clock
from workload import Workload

STREAMS = (1, 3, 7, 15)
COLUMNS = ("forward s", "/ kernel", "fwd+bwd s", "/ kernel")


@contextlib.contextmanager
def torch_operations() -> Iterator[None]:
    with patch.object(applicability, "library", lambda: None):
        yield


@contextlib.contextmanager
def float32_products() -> Iterator[None]:
    """As on a CPU that does not multiply in bf16."""
    with patch.object(library(), "multiplies_bf16", lambda: 0), patch.object(precisions, "has_bf16", lambda: False):
        yield


@contextlib.contextmanager
def in_streams(count: int) -> Iterator[None]:
    with patch.object(library(), "bytes_to_stream", lambda: 0), patch.object(kernel, "STREAMS", count):
        yield


def variants(precision: str) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """Every way, by name: the kernel as it chooses, and others."""
    found: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "kernel": contextlib.nullcontext,
        "torch": torch_operations,
    }
    if precision == "bf16":
        found["float32 products"] = float32_products
    return found | {f"{count} streams": lambda count=count: in_streams(count) for count in STREAMS}


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    options.set_defaults(shapes=["b", "c", "e"], contestants=["fused"])
    args = options.parse_args()
    if library() is None:
        raise SystemExit("there is no compiled kernel on this machine")
    prepare(args)
    results = []
    for shape in chosen_shapes(args):
        for precision in args.precision:
            medians = {
                name: {kind: median(seconds) for kind, seconds in times.items()}
                for name, times in measure(shape, precision, args.repeats).items()
            }
            over = {name: {k: found[k] / medians["kernel"][k] for k in KINDS} for name, found in medians.items()}
            rows = {name: [x for kind in KINDS for x in (medians[name][kind], over[name][kind])] for name in medians}
            print_table(f"{shape.name}: {shape}, {precision}", COLUMNS, rows)
            results += [
                {
                    "shape": shape.name,
                    "precision": precision,
                    "variant": name,
                    "median_s": found,
                    "over_kernel": over[name],
                }
                for name, found in medians.items()
            ]
    write("kernel-variants", args, {"repeats": args.repeats, "warm_up": 1, "statistic": "median"}, results)


def measure(shape: Shape, precision: str, repeats: int) -> dict[str, Times]:
    """Times by variant and kind."""
    ways = variants(precision)
    times: dict[str, Times] = {name: {kind: [] for kind in KINDS} for name in ways}
    workload = Workload("fused", shape, precision, "cpu")
    for turn in range(1 + repeats):
        for name, way in ways.items():
            for kind in KINDS:
                with way():
                    seconds = clock(getattr(workload, kind), "cpu")
                if turn > 0:  # the first is the warm-up
                    times[name][kind].append(seconds)
            workload.model.zero_grad()
    return times


if __name__ == "__main__":
    main()
