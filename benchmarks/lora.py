"""Time of an update of LoRA adapters by the fused walk and by the definition, and of all weights; in turns in one run.

python benchmarks/lora.py --shapes d e
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from peft import LoraConfig, inject_adapter_in_model

from options import chosen_shapes, parser, prepare
from report import print_table, write
from shapes import Shape
from workload import Workload

LINEARS = ["to_q", "to_kv", "to_out", "to_hidden"]
CONTESTANTS = ("all weights", "adapters", "adapters, definition")


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--rank", type=int, default=8)
    options.set_defaults(shapes=["d", "e"], contestants=["fused"])
    args = options.parse_args(argv)
    prepare(args)
    results: list[dict[str, Any]] = []
    for shape in chosen_shapes(args):
        times = measure(shape, args.rank, args.repeats)
        medians = {name: median(seconds) for name, seconds in times.items()}
        base = medians["all weights"]
        print_table(
            f"{shape.name}: {shape}, rank {args.rank}",
            ["fwd+bwd s", "/ all weights"],
            {name: [seconds, seconds / base] for name, seconds in medians.items()},
        )
        results += [{"shape": shape.name, "contestant": name, "seconds": seconds} for name, seconds in times.items()]
    write("lora", args, {"rank": args.rank, "adapted": LINEARS, "warm_up": "one update"}, results)


def measure(shape: Shape, rank: int, repeats: int) -> dict[str, list[float]]:
    """The seconds of each contestant's updates."""
    works = {name: workload(name, shape, rank) for name in CONTESTANTS}
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work.forward_backward()
            if turn:
                times[name].append(time.perf_counter() - began)
            work.model.zero_grad()
    return times


def workload(name: str, shape: Shape, rank: int) -> Workload:
    work = Workload("fused", shape, "fp32", "cpu")
    if name != "all weights":
        model: Any = work.model
        config = LoraConfig(r=rank, target_modules=LINEARS, init_lora_weights=False)
        inject_adapter_in_model(config, model.decoder)
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in key)
        model.implementation = "stepwise" if name.endswith("definition") else "fused"
    return work


if __name__ == "__main__":
    main()
