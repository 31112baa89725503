"""The curves of a run as a picture."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import MissingExtraError

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("matplotlib", "train") from error


def curves_png(metrics: Iterable[Mapping[str, Any]], title: str) -> bytes:
    """Bits per byte over updates, training and held-out, with what xz reaches drawn in.

    The first tenth of the training, where the loss falls steeply, may leave the picture at the top.

    Args:
        metrics: the records of metrics.jsonl.
        title: stands above the plot.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {"xz": [], "train": [], "validation": []}
    for record in metrics:
        by_kind[record["kind"]].append(record)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    visible = []
    for xz in by_kind["xz"]:
        for name, style, label in (("alone", "--", "alone"), ("after_training", ":", "after the training text")):
            if xz[name] is not None:
                axes.axhline(xz[name], color="0.4", linestyle=style, label=f"xz -9, {label}")
                visible.append(xz[name])
    for kind, style, label in (("train", "-", "training"), ("validation", "o-", "held-out")):
        updates = [record["update"] for record in by_kind[kind]]
        heights = [record["bits_per_byte"] for record in by_kind[kind]]
        axes.plot(updates, heights, style, label=label, markersize=4)
        visible += [height for update, height in zip(updates, heights, strict=True) if update > 0.1 * updates[-1]]
    if visible:
        margin = 0.05 * (max(visible) - min(visible)) + 0.01
        axes.set_ylim(min(visible) - margin, max(visible) + margin)
    axes.set(title=title, xlabel="update", ylabel="bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    png = io.BytesIO()
    figure.savefig(png, dpi=150)
    return png.getvalue()
