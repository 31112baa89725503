"""Where the fused walk's time goes by kind of work, forward and backward, and what bounds it.

The bound is what the recurrence takes where weights, of which caches keep little, come from memory and windows from a
cache, each read once a step and direction, and the parameters' gradients are large products. It stands beside the times
of 0.0.11 and of the parallel Transformer within the same run.

python benchmarks/breakdown.py --shapes b c
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from contestants import takes_part
from feedback_transformer_pytorch.recurrence.native.kernel import Kernel
from options import chosen_shapes, parser, prepare
from report import write
from shapes import Shape
from speed import measure as time_in_turns
from workload import Workload

CONTESTANTS = ("reference", "fused", "parallel")
CALLS = ("forward", "backward", "end_strip")
KINDS = {
    "steps: compiled, forward": ("kernel::forward",),
    "steps: compiled, backward": ("kernel::backward", "kernel::end_strip"),
    "steps: products with weights": ("mkl::_mkl_linear", "aten::mm", "aten::addmm"),
    "steps: attention": (
        "aten::bmm", "aten::baddbmm", "aten::baddbmm_", "aten::_softmax", "aten::_softmax_backward_data",
    ),
    "parameter gradients": ("aten::addmm_",),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "mkl::_mkl_reorder_linear_weight"),
    "elementwise and norms": (
        "aten::add", "aten::add_", "aten::mul", "aten::mul_", "aten::addcmul_", "aten::gelu", "aten::gelu_backward",
        "aten::native_layer_norm", "aten::native_layer_norm_backward", "aten::sum",
    ),
}  # fmt: skip
REST = "views, allocation, Python"
FLOAT = 4  # bytes
MEMORY = 2**29  # bytes that no cache holds
REPEATS = 5


def main() -> None:
    args = prepare_arguments()
    memory, rate = read_rate(MEMORY), multiply_rate()
    print(f"\nreads {memory / 1e9:.1f} GB/s from memory, multiplies at {rate / 1e9:.0f} GFLOP/s")
    results = []
    for shape in chosen_shapes(args):
        found = measure(shape)
        weight_bytes, window_bytes = must_read(shape)
        cache = read_rate(window(shape))
        found |= {
            "weights_bytes": weight_bytes,
            "windows_bytes": window_bytes,
            "cache_GB_per_s": cache / 1e9,
            "must_read_weights_s": weight_bytes / memory,
            "must_read_windows_s": window_bytes / cache,
            "must_multiply_for_parameters_s": must_multiply(shape) / rate,
        }
        found["bound_s"] = bound = sum(seconds for name, seconds in found.items() if name.startswith("must_"))
        found["medians_s"] = medians = in_turns(shape, args)
        results.append({"shape": shape.name, "precision": "fp32", "contestant": "fused"} | found)
        print(f"\n{shape.name}: {shape}")
        for kind, seconds in found["seconds"].items():
            print(f"  {kind:30}{seconds:8.3f} s")
        print(f"  {'all':30}{found['all_s']:8.3f} s")
        print(f"  {'weights, from memory':30}{found['must_read_weights_s']:8.3f} s at least")
        print(f"  {'windows, from a cache':30}{found['must_read_windows_s']:8.3f} s at {cache / 1e9:.1f} GB/s")
        print(f"  {'parameter gradients':30}{found['must_multiply_for_parameters_s']:8.3f} s at least")
        for name, seconds in medians.items():
            print(f"  {name:30}{seconds:8.3f} s, {seconds / bound:.2f} times the bound of {bound:.3f} s")
    settings = {
        "memory_GB_per_s": memory / 1e9,
        "GFLOP_per_s": rate / 1e9,
        "memory": f"{MEMORY // 2**20} MiB read over and over, by the fastest of a sum in one stream and of matrices "
        "times a vector in 8 and 16 streams; the cache: as many bytes as one step's windows, the same way",
        "must_read": "weights and windows of every layer and step, forward and backward, once each",
        "bound": "the sum of all that must be done",
        "medians": f"forward and backward, in turns, {REPEATS} of each and a third for the slow ones, without profiler",
    }
    write("breakdown", args, settings, results)


def prepare_arguments() -> Any:
    args = parser(__doc__.splitlines()[0]).parse_args()
    prepare(args)
    return args


def read_rate(size: int) -> float:
    """Bytes a second of reading `size` bytes that have just been read: the best of all ways and rounds."""
    long, rounds = torch.randn(size // FLOAT), max(1, MEMORY // size)
    rates = [long.nbytes / _best(long.sum, rounds)]
    for streams in (8, 16):
        matrix, vector = long.view(streams, -1), torch.randn(long.numel() // streams)
        rates.append((matrix.nbytes + vector.nbytes) / _best(partial(torch.mv, matrix, vector), rounds))
    return max(rates)


def multiply_rate() -> float:
    """Operations a second of one large product: the best of five."""
    square = torch.randn(2048, 2048)
    return 2 * 2048**3 / _best(lambda: square @ square)


def must_read(shape: Shape) -> tuple[int, int]:
    """Bytes of weights, and of windows, of each step and layer, forward and backward."""
    steps = -(-shape.time // shape.seq_len)
    return 2 * FLOAT * steps * shape.depth * weights(shape), 2 * steps * shape.depth * window(shape)


def must_multiply(shape: Shape) -> int:
    """Operations for the parameters' gradients of all products with weights."""
    return 2 * shape.batch * shape.time * shape.depth * weights(shape)


def weights(shape: Shape) -> int:
    """Numbers of a layer's weights."""
    return 2 * shape.dim * shape.heads * shape.dim_head + 12 * shape.dim**2


def window(shape: Shape) -> int:
    """Bytes of the keys and values that a step sees."""
    return FLOAT * 2 * shape.batch * shape.mem_len * (shape.kv_heads or shape.heads) * shape.dim_head


def in_turns(shape: Shape, args: Any) -> dict[str, float]:
    """Median seconds of forward and backward by contestant."""
    names = [name for name in CONTESTANTS if name in args.contestants and takes_part(name, shape)]
    times = time_in_turns(names, shape, "fp32", args.device, REPEATS)["forward_backward"]
    return {name: median(seconds) for name, seconds in times.items()}


@contextmanager
def named_calls() -> Iterator[None]:
    """Shows the profiler the calls of the compiled kernel, which torch does not know of."""
    before = Kernel.__init__

    def init(kernel: Kernel, *args: Any, **kwargs: Any) -> None:
        before(kernel, *args, **kwargs)
        for name in CALLS:
            setattr(kernel, name, record_function(f"kernel::{name}")(getattr(kernel, name)))

    Kernel.__init__ = init  # type: ignore[method-assign]
    yield
    Kernel.__init__ = before  # type: ignore[method-assign]


def measure(shape: Shape) -> dict[str, Any]:
    """Seconds by kind, of one run under the profiler, and of one without."""
    workload = Workload("fused", shape, "fp32", "cpu")
    workload.forward_backward()
    plain = _seconds(workload.forward_backward)
    with named_calls(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        workload.forward_backward()
    seconds = dict.fromkeys([*KINDS, REST], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key in names), REST)
        seconds[kind] += event.self_cpu_time_total / 1e6
    return {"seconds": seconds, "all_s": sum(seconds.values()), "without_profiler_s": plain}


def _best(run: Callable[[], Any], rounds: int = 1) -> float:
    """The fastest of at least five times."""
    return min(_seconds(run) for _ in range(5 * rounds))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
