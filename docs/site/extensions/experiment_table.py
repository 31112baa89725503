"""The directive `experiment-table TITLE`: one section of experiments/README.md, or a note that it has not been run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "experiments" / "README.md"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("experiment-table", ExperimentTable)
    return {"parallel_read_safe": True}


class ExperimentTable(SphinxDirective):
    """The section with the heading that is the argument, without the heading."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, object]] = {}

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(PAGE))
        return self.parse_text_to_nodes(section(PAGE.read_text(encoding="utf-8"), self.arguments[0]))


def section(page: str, title: str) -> str:
    """What stands under a heading of the second level, with its sub-headings in bold and its plots found from here."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    if found is None:
        return f':::{{note}}\nThe table "{title}" has not been run yet. `make experiments` runs it.\n:::\n'
    text = re.sub(r"^### (.*)$", r"**\1**", found[1], flags=re.MULTILINE)
    return text.replace("](plots/", "](../../experiments/plots/")
