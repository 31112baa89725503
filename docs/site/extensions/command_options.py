"""The directive `command-options`: every command of the program, with a table of its options."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from feedback_transformer_pytorch.cli import COMMANDS
from feedback_transformer_pytorch.training.schema import Options, default_of, flag, is_required


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-options", CommandOptions)
    return {"parallel_read_safe": True}


class CommandOptions(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(markdown(), allow_section_headings=True)


def markdown() -> str:
    page = io.StringIO()
    for name, (options, _, description) in COMMANDS.items():
        print(f"## {name}\n\n{description[0].upper()}{description[1:]}.\n", file=page)
        print("| option | default | meaning |\n| --- | --- | --- |", file=page)
        for field in dataclasses.fields(options):
            print(f"| {' | '.join(_row(options, field))} |", file=page)
        print(file=page)
    return page.getvalue()


def _row(options: type[Options], field: dataclasses.Field[Any]) -> tuple[str, str, str]:
    info = options.infos()[field.name]
    option = field.name.upper() if info.positional else flag(field.name)
    meaning = re.sub(r"(?<![\w`-])--[a-z][a-z-]*", r"`\g<0>`", info.help).replace("|", "\\|")
    return f"`{option}`", "required" if is_required(field) else _value(default_of(field)), meaning


def _value(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return {"None": "null", "[]": "none"}.get(str(default), f"`{default}`")
