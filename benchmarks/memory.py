"""Peak memory of forward and backward, each contestant and shape in a process of its own.

    python benchmarks/memory.py --scaling --precision fp32

On a CPU the peak is VmHWM of /proc/self/status, reset by writing 5 to /proc/self/clear_refs once the model, a warm-up
and the full memory are there, minus VmRSS at that moment (Linux only). On a GPU it is what torch allocated.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from contestants import takes_part
from options import chosen_shapes, parser, prepare
from report import print_table, ratios, write
from shapes import Shape
from workload import Workload

COLUMNS = ("peak MiB", "/ reference", "/ parallel")


def main() -> None:
    args = parser(__doc__.splitlines()[0], ["cpu", "cuda"]).parse_args()
    prepare(args)
    results = []
    for shape in chosen_shapes(args):
        names = [name for name in args.contestants if takes_part(name, shape)]
        for precision in args.precision:
            peaks = {name: in_fresh_process(name, shape, precision, args.device) for name in names}
            found = {name: {"peak_mib": peaks[name]} | ratios(name, peaks) for name in names}
            rows = {name: list(figures.values()) for name, figures in found.items()}
            print_table(f"{shape.name}: {shape}, {precision}", COLUMNS, rows)
            results += [{"shape": shape.name, "precision": precision, "contestant": n} | found[n] for n in names]
    how = "torch.cuda.max_memory_allocated" if args.device == "cuda" else "VmHWM, reset before the run, minus VmRSS"
    write("memory", args, {"peak": f"{how}; null: it did not fit"}, results)


def in_fresh_process(contestant: str, shape: Shape, precision: str, device: str) -> float | None:
    """MiB, or None if it does not fit: the system has killed the process, or the GPU has no more.

    Raises:
        SystemExit: the process failed in another way.
    """
    context = multiprocessing.get_context("spawn")
    answer, end = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(end, contestant, shape, precision, device))
    process.start()
    end.close()
    try:
        found: float | None = answer.recv()
    except EOFError:
        found = None
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{contestant}, {shape.name}, {precision}: the process ended with {process.exitcode}")
    return found


def _answer(end: Connection, contestant: str, shape: Shape, precision: str, device: str) -> None:
    try:
        end.send((peak_on_gpu if device == "cuda" else peak_on_cpu)(contestant, shape, precision))
    except torch.OutOfMemoryError:
        end.send(None)


def peak_on_cpu(contestant: str, shape: Shape, precision: str) -> float:
    """MiB that forward and backward take beyond the model and its input."""
    return peak_mib(Workload(contestant, shape, precision, "cpu").forward_backward)


def peak_mib(run: Callable[[], None]) -> float:
    """MiB that a call takes beyond what this process holds before it."""
    gc.collect()
    # What was freed before must go back to the system, or the call would reuse it unseen.
    ctypes.CDLL(None).malloc_trim(0)
    before = status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return (status_kib("VmHWM") - before) / 1024


def peak_on_gpu(contestant: str, shape: Shape, precision: str) -> float:
    """MiB that torch allocates for forward and backward beyond the model and its input."""
    workload = Workload(contestant, shape, precision, "cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    workload.forward_backward()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
