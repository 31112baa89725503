"""Findings as one HTML page that needs nothing else: no network and no other file."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from ...config import FeedbackConfig
from ...errors import MissingExtraError
from ...tasks import IGNORE
from .findings import Findings
from .pictures import visible

_SOURCES = Path(__file__).parent


def plotly_source() -> str:
    """The JavaScript of plotly.

    Raises:
        MissingExtraError: `plotly` is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("plotly", "inspect") from error
    source: str = get_plotlyjs()
    return source


def page(findings: Findings, title: str, config: FeedbackConfig, plotly: str) -> bytes:
    """The page, in UTF-8.

    Pointing at a token shows what each head reads there, and what the memory's mix of it is made of.

    Args:
        title: what is looked at.
        config: the model's.
        plotly: what `plotly_source` gives.
    """
    parts = {
        "TITLE": html.escape(title),
        "SUBTITLE": html.escape(_subtitle(config)),
        "STYLE": _source("page.css"),
        "PLOTLY": plotly,
        "FINDINGS": _json(_values(findings)),
        "SCRIPT": _source("page.js"),
    }
    text = re.sub("%([A-Z]+)%", lambda name: parts[name[1]], _source("page.html"))
    return text.encode("utf-8", errors="replace")


def _subtitle(config: FeedbackConfig) -> str:
    return (
        f"{config.depth} layers of {config.heads} heads, width {config.dim}, {config.mem_len} memory slots, "
        f"segments of {config.seq_len}"
    )


def _source(name: str) -> str:
    return (_SOURCES / name).read_text(encoding="utf-8")


def _json(values: dict[str, Any]) -> str:
    """JSON that may stand in a script element, which the text of a token must not end."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _values(findings: Findings) -> dict[str, Any]:
    """What page.js reads."""
    passage, first = findings.passage, findings.passage.first
    depth, heads, _, window = findings.attention.shape
    window = min(window, len(passage.tokens))
    attention = np.rint(findings.attention[..., :window] * 65535).astype("<u2")
    words, bits = findings.words, findings.bits
    known = bits[~np.isnan(bits)]
    return {
        "words": words,
        "labels": [visible(word) for word in words],
        "before": [visible(passage.word(token)) for token in passage.tokens[max(0, first - window) : first]],
        "number": passage.number,
        "predicts_next": passage.predicts_next,
        "depth": depth,
        "heads": heads,
        "window": window,
        "attention": base64.b64encode(attention.tobytes()).decode(),
        "bits": [None if np.isnan(value) else round(float(value), 4) for value in bits],
        "mean_bits": f"{known.mean():.2f}" if len(known) else "none",
        "targets": [None if target == IGNORE else visible(passage.word(target)) for target in passage.targets[first:]],
        "guesses": [
            [[visible(passage.word(token)), round(float(chance), 4)] for token, chance in zip(*row, strict=True)]
            for row in zip(findings.guesses, findings.chances, strict=True)
        ],
        "mix": _rounded(findings.mix),
        "norms": _rounded(findings.norms),
        "shares": _rounded(findings.shares),
    }


def _rounded(values: Any) -> Any:
    return np.round(values.astype(np.float64), 4).tolist()
