"""Where the fused walk's time goes by kind of work, forward and backward, and what bounds it.

The bound is what the recurrence takes where weights and windows come from memory, whatever computes it: reading each
once a step and direction, then multiplying for the parameters' gradients. It stands beside the times of 0.0.11 and of
the parallel Transformer within the same run.

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
CALLS = ("forward", "backward", "end_block")
KINDS = {
    "steps: compiled, forward": ("kernel::forward",),
    "steps: compiled, backward": ("kernel::backward", "kernel::end_block"),
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
REPEATS = 5


def main() -> None:
    args = prepare_arguments()
    bandwidth, rate = ceilings()
    print(f"\nreads {bandwidth / 1e9:.1f} GB/s from memory, multiplies at {rate / 1e9:.0f} GFLOP/s")
    results = []
    for shape in chosen_shapes(args):
        found = measure(shape)
        found |= {"must_read_s": must_read(shape) / bandwidth, "must_multiply_s": must_multiply(shape) / rate}
        found["bound_s"] = bound = found["must_read_s"] + found["must_multiply_s"] / 3
        found["medians_s"] = medians = in_turns(shape, args)
        results.append({"shape": shape.name, "precision": "fp32", "contestant": "fused"} | found)
        print(f"\n{shape.name}: {shape}")
        for kind, seconds in found["seconds"].items():
            print(f"  {kind:30}{seconds:8.3f} s")
        print(f"  {'all':30}{found['all_s']:8.3f} s")
        reads, multiplies = found["must_read_s"], found["must_multiply_s"]
        print(f"  at the rates above {reads:.3f} s to read, {multiplies:.3f} s to multiply (a third for parameters)")
        for name, seconds in medians.items():
            print(f"  {name:30}{seconds:8.3f} s, {seconds / bound:.2f} times the bound of {bound:.3f} s")
    settings = {
        "bandwidth_GB_per_s": bandwidth / 1e9,
        "GFLOP_per_s": rate / 1e9,
        "bandwidth": "the fastest of a sum in one stream and of matrices times a vector in 8 and 16",
        "must_read": "weights and window of every layer and step, forward and backward, once each, at that rate; "
        "windows that stay in a cache are faster",
        "bound": "must_read, and the third of must_multiply that is the parameters' gradients",
        "medians": f"forward and backward, in turns, {REPEATS} of each and a third for the slow ones, without profiler",
    }
    write("breakdown", args, settings, results)


def prepare_arguments() -> Any:
    args = parser(__doc__.splitlines()[0]).parse_args()
    prepare(args)
    return args


def ceilings() -> tuple[float, float]:
    """Bytes a second of the fastest long read, and operations a second of one large product: the best of five each."""
    long, square = torch.randn(2**27), torch.randn(2048, 2048)
    rates = [long.nbytes / _best(long.sum)]
    for streams in (8, 16):
        matrix, vector = long.view(streams, -1), torch.randn(long.numel() // streams)
        rates.append((matrix.nbytes + vector.nbytes) / _best(partial(torch.mv, matrix, vector)))
    return max(rates), 2 * 2048**3 / _best(lambda: square @ square)


def must_read(shape: Shape) -> float:
    """Bytes: of each step and layer the weights, keys and values, forward and backward."""
    steps = -(-shape.time // shape.seq_len)
    inner, kv = shape.heads * shape.dim_head, (shape.kv_heads or shape.heads) * shape.dim_head
    weights = 2 * shape.dim * inner + 12 * shape.dim**2
    window = 2 * shape.batch * shape.mem_len * kv
    return 2 * FLOAT * steps * shape.depth * (weights + window)


def must_multiply(shape: Shape) -> float:
    """Operations: forward, input gradients and parameter gradients of all products with weights."""
    weights = 2 * shape.dim * shape.heads * shape.dim_head + 12 * shape.dim**2
    return 6 * shape.batch * shape.time * shape.depth * weights


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


def _best(run: Callable[[], Any]) -> float:
    return min(_seconds(run) for _ in range(5))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
