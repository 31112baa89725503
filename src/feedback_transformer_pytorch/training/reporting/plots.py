"""Plots of runs as PNG files."""

from __future__ import annotations

import gc
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ...errors import InputError, MissingExtraError
from ..objective import Metric
from .progress import printable

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("matplotlib", "train") from error

Record = Mapping[str, Any]

_X_LABELS = {"update": "update", "tokens": "tokens read", "seconds": "seconds of training"}


def curves_png(metrics: Iterable[Record], title: str, metric: Metric) -> bytes:
    """A plot of one run: its metric in training and on held-out data over updates, with that of xz where there is one.

    For a feedback model, a second plot has the weights by which its layers enter the memory. In the first tenth of the
    run, where the loss falls steeply, the curves may lie outside the plot.

    Args:
        metrics: the records of metrics.jsonl.
        title: the title of the plot.
        metric: what to plot.
    """
    records = list(metrics)
    weighted = [record for record in records if "layer_weights" in record]
    figure = new_figure(height=6 if weighted else 4.5)
    if weighted:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        _draw_layer_weights(below, weighted)
    else:
        axes = below = figure.add_subplot()
    visible = []
    for xz in _of_kind(records, "xz"):
        for name, style, label in (("alone", "--", "alone"), ("after_training", ":", "after the training text")):
            if xz[name] is not None:
                axes.axhline(xz[name], color="0.4", linestyle=style, label=f"xz -9, {label}")
                visible.append(xz[name])
    visible += _draw(axes, _of_kind(records, "train"), "update", metric, "-", "C0", "training")
    visible += _draw(axes, _of_kind(records, "validation"), "update", metric, "o-", "C1", "held-out")
    _frame(axes, visible)
    below.set_xlabel(_X_LABELS["update"])
    axes.set_ylabel(metric.label)
    axes.set_title(printable(title), parse_math=False)  # text between two $ is no formula
    return png_of(figure)


def comparison_png(
    runs: Sequence[tuple[str, Sequence[Record]]], *, x: Literal["update", "tokens", "seconds"], metric: Metric
) -> bytes:
    """A plot of several runs, each in one colour: their metric in training as a line, on held-out data as dots.

    In the first tenth of each run, where the loss falls steeply, the curves may lie outside the plot.

    Args:
        runs: the name of each run and the records of its metrics.jsonl.
        x: the quantity on the horizontal axis.
        metric: what to plot.

    Raises:
        InputError: in a record, `x` is missing, or `x` or the metric is not a number.
    """
    figure = new_figure(height=4.5)
    axes = figure.add_subplot()
    visible = []
    for number, (name, metrics) in enumerate(runs):
        training, heldout = _of_kind(metrics, "train"), _of_kind(metrics, "validation")
        for record in training + heldout:
            for key in (x, *({metric.name} & record.keys())):  # an interval may have no label
                if not isinstance(record.get(key), int | float):
                    raise InputError(
                        f"{name}: a line of metrics.jsonl has no number as {key!r}; resume the run, which repairs the "
                        "end of the file, or leave the run out"
                    )
        visible += _draw(axes, training, x, metric, "-", f"C{number}", _label(name))
        visible += _draw(axes, heldout, x, metric, "o", f"C{number}", None)
    _frame(axes, visible)
    axes.set(title="line: training, dots: held-out", xlabel=_X_LABELS[x], ylabel=metric.label)
    return png_of(figure)


def new_figure(height: float, width: float = 7) -> Figure:
    """An empty figure of this size in inches, to be drawn without a display."""
    gc.collect()  # frees the last figure: megabytes in reference cycles, which would add up during training
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def by_position_png(by_position: Sequence[float | None], title: str, metric: Metric) -> bytes:
    """A plot of a metric against position.

    Args:
        by_position: its value at each position, None where there is none.
        title: the title of the plot.
        metric: what to plot.
    """
    figure = new_figure(height=4)
    axes = figure.add_subplot()
    found = [(place, value) for place, value in enumerate(by_position, 1) if value is not None]
    axes.plot(*zip(*found, strict=True), ".-" if len(found) < 100 else "-", linewidth=1.2, markersize=4)
    axes.set(xlabel="position", ylabel=metric.label)
    if metric.limits is not None:
        axes.set_ylim(metric.limits[0] - 0.02, metric.limits[1] + 0.02)
    axes.set_title(printable(title), parse_math=False)
    axes.grid(alpha=0.3)
    return png_of(figure)


def _label(name: str) -> str:
    """A name as matplotlib shows it in a legend, where text between two $ is a formula and _ at the start hides it."""
    label = printable(name).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def _draw(
    axes: Axes, records: Sequence[Record], x: str, metric: Metric, style: str, colour: str, label: str | None
) -> list[float]:
    """Draws a curve; returns its finite heights after the first tenth, which the plot must show."""
    records = [record for record in records if metric.name in record]  # an interval may have no label
    places = [record[x] for record in records]
    heights = [record[metric.name] for record in records]
    axes.plot(places, heights, style, color=colour, label=label, linewidth=1.2, markersize=4)
    late = (height for place, height in zip(places, heights, strict=True) if place > 0.1 * places[-1])
    return [height for height in late if math.isfinite(height)]


def _draw_layer_weights(axes: Axes, records: Sequence[Record]) -> None:
    updates = [record["update"] for record in records]
    curves = list(zip(*(record["layer_weights"] for record in records), strict=True))
    for layer, weights in enumerate(curves):
        colour = colormaps["viridis"](layer / len(curves))
        axes.plot(updates, weights, color=colour, linewidth=1.2, label=f"layer {layer}" if layer else "embedding")
    axes.set(ylabel="layer weight")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(curves) // 8)


def _frame(axes: Axes, visible: Sequence[float]) -> None:
    """Adds a legend and a grid, and sets the limits so that the plot shows the heights in `visible`."""
    if visible:
        margin = 0.05 * (max(visible) - min(visible)) + 0.01
        axes.set_ylim(min(visible) - margin, max(visible) + margin)
    axes.grid(alpha=0.3)
    axes.legend()


def png_of(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    png = io.BytesIO()
    figure.savefig(png, dpi=150)
    return png.getvalue()
