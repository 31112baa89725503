"""The plots of the tables, as SVG files. Each has the digest of what it shows as its title.

Its numbers may differ in the last digit between machines, so a plot is compared by its digest and not by its bytes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import Result

LENGTHS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
TICKS = (2, 8, 32, 128, 512)
COLUMNS = 3  # of panels
STYLES = {"Feedback": ("C0", "o"), "Transformer-XL": ("C3", "^"), "Transformer": ("C1", "s")}
LABEL = re.compile(r"(Feedback|Transformer)(?: \(-XL\))?, L (\d+)(?:, (.+))?")  # architecture, layers, special setting
VARIANT_COLOURS = ("C2", "C4", "C5", "C6", "C7", "C8", "C9")
DEPTH_DASHES = {"1": "-", "2": "--", "4": ":", "8": "-."}
DASHES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 1, 1, 1, 1, 1)))  # of an architecture's rows

Groups = Sequence[tuple[str, Sequence[Result]]]  # a title and its rows


def positions(groups: Groups) -> bytes:
    """Accuracy against position, a panel for each group, and one for the legend: the median of the seeds, and their
    range."""
    styles = _styles_of_settings([result.row.label for _, results in groups for result in results])
    count = -(-(len(groups) + 1) // COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 3.1 * count), layout="constrained")
    panels = figure.subplots(count, COLUMNS, squeeze=False, sharey=True).flatten()
    for axes, (title, results) in zip(panels, groups, strict=False):
        for result in results:
            points = [(t, found) for t in LENGTHS if (found := result.values({"show": "at", "length": t}))]
            places, style = [t for t, _ in points], styles[result.row.label]
            axes.plot(places, [median(f) for _, f in points], markersize=3, **style)
            axes.fill_between(
                places,
                [min(f) for _, f in points],
                [max(f) for _, f in points],
                color=style["color"],
                alpha=0.12,
                linewidth=0,
            )
        axes.axvline(results[0].row.options["block_len"], color="0.5", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axes.set(title=_short(title), xlabel="up to position (dotted: longest in training)", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    lines = [Line2D([], [], markersize=3, **style) for style in styles.values()]
    panels[len(groups)].legend(handles=lines, loc="center left", fontsize="small", frameon=False)
    for row in range(count):
        panels[row * COLUMNS].set_ylabel("accuracy")
    return _svg(figure, groups)


def layers(groups: Groups) -> bytes:
    """The last position with an accuracy of at least REACHED against the number of layers, a panel for each group.

    A model that does not reach the first position is drawn there.
    """
    column = {"show": "reach"}
    drawn = [(title, found) for title, results in groups if (found := _plain(results, column))]
    panels = max(1, len(drawn))
    figure = Figure(figsize=(3.0 * panels, 3.0), layout="constrained")
    for axes, (title, found) in zip(_panels(figure, panels), drawn, strict=False):
        for name, (colour, marker) in STYLES.items():
            points = sorted((depth, reached) for (row, depth), reached in found.items() if row == name)
            axes.plot(
                [depth for depth, _ in points],
                [max(1, median(reached)) for _, reached in points],
                color=colour,
                marker=marker,
                label=name if points else None,
            )
            for depth, reached in points:
                axes.vlines(depth, max(1, min(reached)), max(reached), color=colour, alpha=0.4)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks((1, 2, 4, 8), ("1", "2", "4", "8"))
        axes.set_yticks(TICKS, [str(tick) for tick in TICKS])
        axes.set(title=_short(title), xlabel="layers", xlim=(0.9, 9), ylim=(0.9, 600))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("last position with at least 90 %")
    if drawn:
        figure.axes[0].legend(fontsize="x-small")
    return _svg(figure, groups)


def _plain(results: Sequence[Result], column: dict[str, Any]) -> dict[tuple[str, int], list[float]]:
    """The figures of the rows that differ only in architecture and layers, by both."""
    matches = [(result, LABEL.fullmatch(result.row.label)) for result in results]
    plain = [(result, match) for result, match in matches if match and not match[3]]
    figures = {(match[1], int(match[2])): result.values(column) for result, match in plain}
    return {key: found for key, found in figures.items() if found}


def curves(groups: Groups) -> bytes:
    """The metric against updates and against the time of one core, a row of panels for each group.

    All updates of a run are taken to last equally long, since all take as many tokens.
    """
    figure = Figure(figsize=(9, 3.2 * len(groups)), layout="constrained")
    grid = figure.subplots(len(groups), 2, squeeze=False, sharey="row")
    for (left, right), (title, results) in zip(grid, groups, strict=True):
        for axes, name in ((left, "update"), (right, "seconds of one core")):
            for result, (colour, marker, dash) in zip(results, _styles_by_order(results), strict=True):
                for number, run in enumerate(run for run in result.runs if "diverged" not in run):
                    unit = 1 if axes is left else run["seconds"] / run["updates"]
                    axes.plot(
                        [unit * update for update, _ in run["curve"]],
                        [metric for _, metric in run["curve"]],
                        dash,
                        color=colour,
                        marker=marker,
                        markersize=2,
                        linewidth=1,
                        label=None if number else result.row.label,
                    )
            axes.set(title=title, xlabel=name)
            axes.grid(alpha=0.3)
        left.set_ylabel("accuracy" if "task" in results[0].row.options else "bits per byte")
        right.legend(fontsize="x-small")
    return _svg(figure, groups)


DRAWINGS: dict[str, Callable[[Groups], bytes]] = {"positions": positions, "layers": layers, "curves": curves}


def digest(groups: Groups) -> str:
    """SHA-256 of the programs that draw, and of the labels and results of the groups, in hexadecimal."""
    shown = [(title, [(result.row.label, result.found) for result in results]) for title, results in groups]
    programs = [Path(__file__).with_name(name).read_text() for name in ("drawing.py", "figures.py")]
    return hashlib.sha256("".join([*programs, json.dumps(shown, sort_keys=True)]).encode()).hexdigest()


def _panels(figure: Figure, count: int) -> Iterable[Axes]:
    return figure.subplots(1, count, squeeze=False, sharey=True)[0]


def _short(title: str) -> str:
    return title.partition(",")[0]


def _styles_of_settings(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Arguments of `plot` for each label: the colour says the architecture or the special setting, the dash the
    layers."""
    found: dict[str, dict[str, Any]] = {}
    variants: dict[str, str] = {}
    unused = itertools.cycle(VARIANT_COLOURS)
    for label in sorted(set(labels)):
        match = LABEL.fullmatch(label)
        if match is None:
            raise ValueError(
                f"the label {label!r} does not say the architecture and the layers, as 'Feedback, L 2' does"
            )
        colour, marker = STYLES[match[1]]
        if match[3]:
            variant = f"{match[1]}, {match[3]}"
            colour = variants[variant] = variants.get(variant) or next(unused)
        found[label] = {"color": colour, "marker": marker, "linestyle": DEPTH_DASHES[match[2]], "label": label}
    return found


def _styles_by_order(results: Sequence[Result]) -> list[tuple[str, str, Any]]:
    """Colour and marker of the architecture; a dash for each row that it has."""
    seen: dict[str, int] = {}
    found = []
    for result in results:
        name = next((name for name in STYLES if result.row.label.startswith(name)), "Feedback")
        colour, marker = STYLES[name]
        found.append((colour, marker, DASHES[seen.get(name, 0)]))
        seen[name] = seen.get(name, 0) + 1
    return found


def _svg(figure: Figure, groups: Groups) -> bytes:
    FigureCanvasSVG(figure)
    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "feedback", "svg.fonttype": "none"}):
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None, "Title": digest(groups)})
    return picture.getvalue()
