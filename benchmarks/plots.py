"""The plots of the README, from the JSON files of speed.py and memory.py.

python benchmarks/plots.py --device cpu
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

ROOT = Path(__file__).parents[1]
# Okabe and Ito's colours, which the colour-blind can tell apart.
LOOKS = {
    "reference": ("0.0.11", "#D55E00"),
    "stepwise": ("stepwise", "#E69F00"),
    "fused": ("this package (t5)", "#0072B2"),
    "fused-relative": ("this package (relative)", "#56B4E9"),
    "transformer-xl": ("Transformer-XL", "#CC79A7"),
    "parallel": ("parallel Transformer", "#555555"),
}
STYLE = {
    "font.size": 10,
    "text.color": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "savefig.dpi": 160,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the images")
    args = options.parse_args()

    def read(name: str) -> dict[str, Any]:
        """One report, or the reports of several runs, of other shapes or precisions, as one."""
        first, *others = [
            json.loads(path.read_text()) for path in sorted(args.results.glob(f"{name}-{args.device}*.json"))
        ]
        for other in others:
            first["results"] += other["results"]
            first["shapes"] |= other["shapes"]
        return first

    plt.rcParams.update(STYLE)
    args.out.mkdir(exist_ok=True)
    plot_speed(read("speed-shapes"), args.out / "speed.png")
    plot_scaling(read("speed-scaling"), read("memory-scaling"), args.out / "scaling.png")


def plot_speed(report: dict[str, Any], out: Path) -> None:
    """Forward and backward of each contestant over the parallel Transformer's, a group of bars per shape."""
    ratios: dict[str, dict[str, dict[str, float]]] = {}  # by precision, shape and contestant
    for row in report["results"]:
        if row["contestant"] != "parallel":
            shapes = ratios.setdefault(row["precision"], {})
            shapes.setdefault(row["shape"], {})[row["contestant"]] = row["forward_backward"]["over_parallel"]
    order = sorted(report["shapes"])
    height = 1 + 0.95 * len(order)
    figure, _ = plt.subplots(1, len(ratios), figsize=(5.2 * len(ratios), height), sharex=True, sharey=True)
    for panel, (precision, groups) in zip(figure.axes, ratios.items(), strict=True):
        for name, bars in groups.items():
            draw_bars(panel, order.index(name), bars)
        panel.set_title(precision)
        panel.set_xscale("log")
        panel.axvline(1, color=LOOKS["parallel"][1], linewidth=1.2)
        panel.tick_params(axis="y", length=0)
        panel.set_xlabel("time of a forward and backward pass,\nrelative to the parallel Transformer")
        number_ticks(panel, [1, 2, 3, 5, 10, 20, 30])
    first = figure.axes[0]
    first.set_xlim(right=3 * first.get_xlim()[1])  # room for the labels
    first.set_yticks(range(len(order)), [describe(report["shapes"][name]) for name in order])
    first.invert_yaxis()
    save(figure, report, out)


def draw_bars(panel: Axes, group: int, bars: dict[str, float]) -> None:
    """A bar from 1 to each contestant's ratio, labelled at its end."""
    step = 0.82 / len(bars)
    for place, (name, value) in enumerate(sorted(bars.items(), key=lambda bar: list(LOOKS).index(bar[0]))):
        label, colour = LOOKS[name]
        y = group + (place - (len(bars) - 1) / 2) * step
        panel.barh(y, value - 1, left=1, height=0.9 * step, color=colour)
        panel.text(max(value, 1) * 1.06, y, f"{label} {value:.2g}\N{MULTIPLICATION SIGN}", va="center", fontsize=8)


def plot_scaling(speed: dict[str, Any], memory: dict[str, Any], out: Path) -> None:
    """Time and peak memory of forward and backward over the length of a block, both axes logarithmic."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.2))
    precision = speed["results"][0]["precision"]
    plot_lines(left, speed, precision, lambda row: row["forward_backward"]["median_s"])
    plot_lines(right, memory, precision, lambda row: row["peak_mib"] and row["peak_mib"] / 1024)
    left.set_title(f"time in seconds, {precision}")
    right.set_title(f"peak RAM in GiB, {precision}")
    save(figure, speed, out)


def plot_lines(panel: Axes, report: dict[str, Any], precision: str, value: Callable[[Any], float | None]) -> None:
    lengths = [shape["time"] for shape in report["shapes"].values()]
    ends: dict[str, tuple[int, float]] = {}
    for name, (_, colour) in LOOKS.items():
        rows = [row for row in report["results"] if row["contestant"] == name and row["precision"] == precision]
        points = [(report["shapes"][row["shape"]]["time"], y) for row in rows if (y := value(row))]
        if points:
            panel.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour)
            ends[name] = points[-1]
    panel.set_xscale("log")
    panel.set_yscale("log")
    label_ends(panel, ends)
    panel.set_xlim(right=lengths[-1] * 4)
    panel.set_xlabel("tokens in a block, T")
    panel.grid(axis="y", color="#E5E5E5")
    number_ticks(panel, lengths)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def label_ends(panel: Axes, ends: dict[str, tuple[int, float]]) -> None:
    """Names lines where they end, lowest first, each label moved up until it clears the one below."""
    bottom, top = panel.get_ylim()
    line_height = (top / bottom) ** 0.055
    longest = max(x for x, _ in ends.values())
    lowest = 0.0
    for name, (x, y) in sorted(ends.items(), key=lambda end: end[1][1]):
        label, colour = LOOKS[name]
        if x < longest:  # beyond this it did not fit into memory
            panel.text(x, y * line_height, label, ha="right", fontsize=9, color=colour)
        else:
            lowest = max(y, lowest * line_height)
            panel.text(x * 1.12, lowest, label, va="center", fontsize=9, color=colour)


def number_ticks(panel: Axes, ticks: list[int]) -> None:
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())


def describe(shape: dict[str, Any]) -> str:
    segment = f", S {shape['seq_len']}" if shape["seq_len"] > 1 else ""
    return f"{shape['name']}:  B {shape['batch']}, T {shape['time']}{segment}\nM {shape['mem_len']}, D {shape['dim']}"


def save(figure: plt.Figure, report: dict[str, Any], out: Path) -> None:
    """With the machine below the axes, and nothing in the file that differs from run to run."""
    environment = report["environment"]
    machine = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    figure.supxlabel(f"{machine}, torch {environment['torch']}", fontsize=8, color="#777777", x=0.99, ha="right")
    figure.tight_layout()
    figure.savefig(out, metadata={"Software": None})
    plt.close(figure)
    print(f"written to {out}")


if __name__ == "__main__":
    main()
