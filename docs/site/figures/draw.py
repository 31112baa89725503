"""The drawings of the page "The model", as SVG files beside this script.

python docs/site/figures/draw.py            writes them
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
READ, WRITE, INK, FAINT = "#0072B2", "#D55E00", "#333333", "#C9C9C9"
USED, UNUSED = "#CFE6F5", "#FFFFFF"  # the fill of a state that a result depends on, and of another

Point = tuple[float, float]


def main() -> None:
    for name, content in drawings().items():
        (HERE / name).write_text(content, encoding="utf-8")


def drawings() -> dict[str, str]:
    """The content of each file."""
    return {"reads.svg": reads(), "token.svg": token(), "segments.svg": segments()}


# What all drawings are made of.


def picture(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole file; `title` is what a screen reader says."""
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
        f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
        for name, colour in (("read", READ), ("write", WRITE), ("ink", INK))
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}" role="img">\n<title>{title}</title>\n'
        f'<defs>{heads}</defs>\n<rect width="{width}" height="{height}" rx="8" fill="#FFFFFF"/>\n{body}\n</svg>\n'
    )


def words(x: float, y: float, text: str, *, anchor: str = "middle", **style: str) -> str:
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{extra}>{text}</text>'


def box(x: float, y: float, width: float, height: float, *, fill: str = UNUSED, stroke: str = INK, **style: str) -> str:
    """A box around its centre."""
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return (
        f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" height="{height:g}" rx="4" '
        f'fill="{fill}" stroke="{stroke}"{extra}/>'
    )


def line(points: Iterable[Point], *, kind: str = "ink", width: float = 1.4, head: bool = True, dashes: str = "") -> str:
    """A line through points, in the colour of its kind: read, write or ink."""
    colour = {"read": READ, "write": WRITE, "ink": INK}[kind]
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    extra = (f' marker-end="url(#{kind})"' if head else "") + (f' stroke-dasharray="{dashes}"' if dashes else "")
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{extra}/>'


# What one state reads in three models.

COLUMNS, ROWS, PITCH, RISE = 5, 4, 40, 50
CALL = 2  # the columns before the call that is being computed
PANEL = 258  # the width of a panel


def reads() -> str:
    """Three panels: what layer 2 of the newest token reads, and what that depends on."""
    panels = [
        ("Transformer", "reads layer 1 of this call", _transformer(cached=False)),
        ("Transformer-XL", "reads layer 1, of the last call too", _transformer(cached=True)),
        ("Feedback Transformer", "reads the memory, made of all layers", _feedback()),
    ]
    parts = []
    for place, (name, caption, content) in enumerate(panels):
        middle = _place(2, 0)[0]
        parts += [
            f'<g transform="translate({8 + PANEL * place},0)">',
            words(middle, 28, name, font_size="15", font_weight="bold"),
            words(middle, 48, caption),
            *content,
            "</g>",
        ]
    legend = [
        box(180, 358, 18, 14, fill=USED),
        words(196, 363, "the result depends on it", anchor="start"),
        box(380, 358, 18, 14),
        words(396, 363, "it does not", anchor="start"),
        line([(488, 358), (518, 358)], kind="read"),
        words(526, 363, "reads", anchor="start"),
        line([(586, 358), (616, 358)], kind="write"),
        words(624, 363, "writes", anchor="start"),
    ]
    return picture(3 * PANEL + 8, 380, "What layer 2 of one token reads in three models", [*parts, *legend])


def _place(column: int, row: float) -> Point:
    return 62 + PITCH * column, 300 - RISE * row


def _axes() -> list[str]:
    names = [f"t&#8722;{COLUMNS - 1 - column}" for column in range(COLUMNS - 1)] + ["t"]
    parts = [words(_place(column, 0)[0], 330, name, font_size="12") for column, name in enumerate(names)]
    for row in range(ROWS):
        x, y = _place(0, row)
        parts.append(words(x - 20, y + 4, "emb." if row == 0 else str(row), anchor="end", font_size="12"))
    x = _place(CALL, 0)[0] - PITCH / 2
    return [*parts, line([(x, 132), (x, 336)], width=1, head=False, dashes="3 4")]


def _state(column: int, row: float, *, used: bool, stroke: str = INK, **style: str) -> str:
    x, y = _place(column, row)
    return box(x, y, 26, 22, fill=USED if used else UNUSED, stroke=stroke, **style)


def _transformer(*, cached: bool) -> list[str]:
    query, parts = (COLUMNS - 1, 2), _axes()
    for column in range(COLUMNS):
        for row in range(ROWS):
            earlier = column < CALL
            used = row < query[1] and (cached or not earlier)
            style = {"stroke_dasharray": "4 3"} if earlier and cached else {}
            parts.append(_state(column, row, used=used, stroke=FAINT if earlier and not cached else INK, **style))
    parts += [_arrow(column, 1, query) for column in range(0 if cached else CALL, COLUMNS)]
    note = "kept, no gradient" if cached else "forgotten"
    return [
        *parts,
        _query(query),
        words(_place(0, 0)[0] + PITCH / 2 - 6, 124, note, font_size="12", font_style="italic"),
    ]


def _feedback() -> list[str]:
    query, parts, memory = (COLUMNS - 1, 2), _axes(), 4.2
    for column in range(COLUMNS):
        past = column < COLUMNS - 1
        if past:
            x, bottom = _place(column, 0)
            parts.append(line([(x, bottom - 12), (x, _place(column, memory)[1] + 15)], kind="write"))
        for row in range(ROWS):
            parts.append(_state(column, row, used=past or row < query[1]))
    left, y = _place(0, memory)
    parts.append(words(left - 20, y + 4, "memory", anchor="end", font_size="12"))
    for column in range(COLUMNS - 1):
        parts += [_state(column, memory, used=True, stroke=WRITE, stroke_width="1.8"), _arrow(column, memory, query)]
    x, y = _place(COLUMNS - 1, 0)
    parts.append(line([(x, y - 11), (x, y - RISE + 11)]))
    parts.append(line([(x, y - RISE - 11), (x, y - 2 * RISE + 12)]))
    return [*parts, _query(query)]


def _arrow(column: int, row: float, query: tuple[int, int]) -> str:
    """From a state to the query; from the side for those of its own row or above, from below for those below."""
    (x, y), (to_x, to_y) = _place(column, row), _place(*query)
    above = row > query[1]
    start = (x, y + 11) if above else (x, y - 11)
    end = (to_x - 14, to_y - 4) if above else (to_x - 14, to_y + 5) if x < to_x else (to_x, to_y + 12)
    return line([start, end], kind="read")


def _query(query: tuple[int, int]) -> str:
    x, y = _place(*query)
    return box(x, y, 26, 22, fill=READ, stroke=READ)


# What happens to one token.


def token() -> str:
    """A token goes through the layers, reads the memory in each, and is written to it."""
    left, middle, right, memory = 120, 360, 640, 66
    layers, rise = {1: 400, 2: 320, 3: 240}, 36  # the middles of the layers, and how far above it a state leaves
    parts = [words(40, memory - 31, "memory of the last M tokens", anchor="start", font_weight="bold")]
    for slot, name in enumerate(("t&#8722;4", "t&#8722;3", "t&#8722;2", "t&#8722;1")):
        parts += [box(80 + 90 * slot, memory, 80, 34, fill=USED), words(80 + 90 * slot, memory + 5, name)]
    parts += [
        box(right, memory, 80, 34, stroke=WRITE, stroke_dasharray="5 3"),
        words(right, memory + 5, "t"),
        line([(right - 42, memory), (398, memory)], kind="write", dashes="5 3"),
        words(498, memory - 10, "one in, the oldest out", font_size="12", fill=WRITE),
        line([(left, memory + 17), (left, layers[1])], kind="read", head=False),
        words(left - 8, 280, "keys and", anchor="end", fill=READ),
        words(left - 8, 296, "values", anchor="end", fill=READ),
        words(middle, 476, "embedding of token t"),
        line([(middle, 462), (middle, layers[1] + 25)]),
        words(middle - 10, layers[3] - 62, "logits", anchor="end"),
    ]
    for number, y in layers.items():
        parts += [
            box(middle, y, 320, 48),
            words(middle - 150, y + 5, f"layer {number}", anchor="start", font_weight="bold"),
            box(middle - 20, y, 90, 30, fill="#F4F4F4"),
            words(middle - 20, y + 5, "attention"),
            box(middle + 90, y, 100, 30, fill="#F4F4F4"),
            words(middle + 90, y + 5, "feed-forward"),
            line([(left, y), (middle - 161, y)], kind="read"),
            line([(middle, y - 24), (middle, y - 74 if number == 3 else y - 54)]),
            line([(middle, y - rise), (right, y - rise)], kind="write", head=False),
        ]
    parts += [
        line([(middle, layers[1] + 44), (right, layers[1] + 44)], kind="write", head=False),
        line([(right, layers[1] + 44), (right, memory + 18)], kind="write"),
        box(right, 166, 170, 30, stroke=WRITE),
        words(right, 171, "&#931; softmax(w) &#215; states"),
        box(right, 118, 170, 30, stroke=WRITE),
        words(right, 123, "norm, then to_kv"),
        words(right + 10, 318, "states of all layers,", anchor="start", fill=WRITE),
        words(right + 10, 334, "the embedding too", anchor="start", fill=WRITE),
    ]
    return picture(790, 492, "How one token reads and writes the memory", parts)


# What a query sees where segments have more than one token.


def segments() -> str:
    """Two rows of twelve tokens: the memory and the local keys of one query, for S 1 and S 4."""
    query, slots, count, parts = 10, 6, 12, []
    for place, size in enumerate((1, 4)):
        y, start = 50 + 78 * place, query - query % size
        parts.append(words(70, y + 5, f"S {size}", anchor="end", font_weight="bold"))
        for index in range(count):
            x = 105 + 46 * index + 8 * (index // size if size > 1 else 0)
            memory, local = start - slots <= index < start, size > 1 and start <= index <= query
            fill = USED if memory else "#FBE0CF" if local else UNUSED
            stroke, width = (READ, "2.5") if index == query else (INK if memory or local else FAINT, "1")
            parts += [
                box(x, y, 38, 30, fill=fill, stroke=stroke, stroke_width=width),
                words(x, y + 5, str(index + 1), fill=INK if memory or local or index == query else "#999999"),
            ]
    y = 192
    for x, fill, text in ((105, USED, "in the memory: M = 6 slots"), (345, "#FBE0CF", "in its own segment")):
        parts += [box(x, y, 18, 14, fill=fill), words(x + 16, y + 5, text, anchor="start")]
    parts += [box(530, y, 18, 14, stroke=READ, stroke_width="2.5"), words(546, y + 5, "the query", anchor="start")]
    return picture(700, 215, "What token 11 sees with segments of one token and of four", parts)


if __name__ == "__main__":
    main()
