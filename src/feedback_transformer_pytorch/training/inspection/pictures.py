"""Findings as PNG files."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import MissingExtraError
from ..reporting.plots import new_figure, png_of
from .findings import Findings

try:
    from matplotlib import colormaps
    from matplotlib.ticker import StrMethodFormatter
except ImportError as error:
    raise MissingExtraError("matplotlib", "train") from error

MAP_TOKENS = 32  # of the attention map: so many that each has room for its text
FLOOR = 1e-4  # the least attention that is drawn

_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def pictures(findings: Findings, title: str) -> dict[str, bytes]:
    """All PNG files, by name.

    Args:
        title: what is looked at.
    """
    return {
        "attention-by-distance.png": attention_by_distance_png(findings, title),
        "attention-map.png": attention_map_png(findings, title),
        "memory-mix.png": memory_mix_png(findings, title),
        "bits.png": bits_png(findings, title),
    }


def attention_by_distance_png(findings: Findings, title: str) -> bytes:
    """For each layer, the mean attention of each head to the token that stands so many places before."""
    by_distance = findings.by_distance()
    depth, heads, window = by_distance.shape
    columns = math.ceil(math.sqrt(depth))
    rows = math.ceil(depth / columns)
    figure = new_figure(height=0.8 + 2.4 * rows, width=1 + 2.8 * columns)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    distance = np.arange(window)
    for layer, axes in enumerate(grid.flat):
        if layer >= depth:
            axes.set_axis_off()
            continue
        for head, means in enumerate(by_distance[layer]):
            drawn = (distance > 0) & (means >= FLOOR)
            colour = _colour(head, heads)
            axes.plot(distance[drawn], means[drawn], color=colour, linewidth=1.2, label=f"head {head + 1}")
        axes.set(title=f"layer {layer + 1}", yscale="log", ylim=(FLOOR, 1.2))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.grid(alpha=0.3)
    figure.suptitle(title, parse_math=False)
    figure.supxlabel("tokens back")
    figure.supylabel("mean attention")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return png_of(figure)


def attention_map_png(findings: Findings, title: str) -> bytes:
    """For each layer and head, which of the last tokens each of the last tokens reads."""
    labels = [visible(word) for word in findings.words[-MAP_TOKENS:]]
    count = len(labels)
    depth, heads, _, _ = findings.attention.shape
    figure = new_figure(height=0.8 + 2.6 * depth, width=0.8 + 2.6 * heads)
    grid = figure.subplots(depth, heads, sharex=True, sharey=True, squeeze=False)
    places = np.arange(count)
    for layer, head in np.ndindex(depth, heads):
        axes: Any = grid[layer, head]
        found = by_place(findings.attention[layer, head, -count:])
        image = axes.imshow(found, cmap="RdPu", vmin=0, vmax=1)
        axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize="small")
        axes.tick_params(length=0, pad=1)
    words: Any = {"labels": labels, "fontsize": 5, "parse_math": False}  # text between two $ is no formula
    rotation = 90 if max(map(len, labels)) > 1 else 0
    for axes in grid[-1]:
        axes.set_xticks(places, rotation=rotation, **words)
    for axes in grid[:, 0]:
        axes.set_yticks(places, **words)
    figure.suptitle(title, parse_math=False)
    figure.supxlabel("is read")
    figure.supylabel("reads")
    figure.colorbar(image, ax=grid, shrink=0.5, label="attention")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font draws a box in its place
        return png_of(figure)


def memory_mix_png(findings: Findings, title: str) -> bytes:
    """What the memory's mix is made of: the weight of each layer, the norm of its states, and its share of the mix."""
    figure = new_figure(height=3.2, width=9)
    layers = np.arange(len(findings.mix))
    names = ["emb.", *map(str, layers[1:])]
    for axes, (label, values) in zip(
        figure.subplots(1, 3),
        [
            ("weight", findings.mix[:, None]),
            ("norm of the state", findings.norms),
            ("share of the mix", findings.shares),
        ],
        strict=True,
    ):
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], axis=1)
        errors = None if values.shape[1] == 1 else np.stack([middle - low, high - middle])
        axes.bar(layers, middle, yerr=errors, color=_colours(layers), ecolor="0.3", error_kw={"linewidth": 1})
        axes.set(title=label, xlabel="layer")
        axes.set_xticks(layers, names)
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{title}: median over the tokens, and the range of 80 % of them", parse_math=False)
    return png_of(figure)


def bits_png(findings: Findings, title: str) -> bytes:
    """The bits of each token or label, and their running mean."""
    figure = new_figure(height=3.2, width=9)
    axes = figure.add_subplot()
    place = findings.passage.number + np.arange(len(findings.bits))
    drawn = ~np.isnan(findings.bits)
    axes.bar(place[drawn], findings.bits[drawn], width=1, color="C0", alpha=0.35)
    axes.plot(place[drawn], _running_mean(findings.bits[drawn]), color="C1", linewidth=1.4, label="mean of the last 16")
    axes.set(xlabel="token", ylabel="bits", xlim=(place[0] - 1, place[-1] + 1))
    axes.set_title(title, parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return png_of(figure)


def by_place(by_distance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Attention of n tokens by distance (n, W) to attention of each to each (n, n)."""
    count, window = by_distance.shape
    distance = np.arange(count)[:, None] - np.arange(count)
    is_seen = (distance >= 0) & (distance < window)
    found = np.take_along_axis(by_distance, np.clip(distance, 0, window - 1), axis=1)
    return np.where(is_seen, found, 0)


def visible(word: str) -> str:
    """A token with signs for white space."""
    return "".join(_VISIBLE.get(character, character) for character in word)


def _running_mean(values: npt.NDArray[Any], width: int = 16) -> npt.NDArray[Any]:
    """The mean of each value and the `width` - 1 before it, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    stops = np.arange(1, len(sums))
    starts = np.maximum(0, stops - width)
    return (sums[stops] - sums[starts]) / (stops - starts)


def _colour(number: int, count: int) -> Any:
    return f"C{number}" if count <= 10 else colormaps["viridis"](number / count)


def _colours(layers: npt.NDArray[Any]) -> Any:
    return colormaps["viridis"](layers / len(layers))
