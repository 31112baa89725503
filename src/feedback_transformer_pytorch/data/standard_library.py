"""The English text in Python's standard library: help topics and docstrings."""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

from ..errors import InputError

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def standard_library_text() -> tuple[list[str], list[str]]:
    """Return the paragraphs of `pydoc_data.topics` and those of the standard library's docstrings.

    Topics are sorted by name, docstrings by the path of their source file and then by line. Of paragraphs that are
    equal up to white space, only the first in both lists is kept: wherever the lists are split, no paragraph is on both
    sides. The sources are parsed, not imported.

    Raises:
        InputError: this Python was installed without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    docstrings = [text for path in _sources(root) for text in _docstrings(path)] if root.is_dir() else []
    if not docstrings:
        raise InputError(
            f"the standard library's folder {str(root)!r} has no Python sources, from which the default text is made; "
            "give text files instead"
        )
    seen: set[str] = set()
    return (
        list(_new_paragraphs((topics[name] for name in sorted(topics)), seen)),
        list(_new_paragraphs(docstrings, seen)),
    )


def _sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir():
            if path.name not in _SKIPPED_FOLDERS:
                yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escape sequences in the sources
        tree = ast.parse(path.read_bytes())
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
        # Only statements, `except` and `case` contain definitions. Skipping expressions halves the time.
        children = [
            c for c in ast.iter_child_nodes(node) if isinstance(c, ast.stmt | ast.excepthandler | ast.match_case)
        ]
        nodes.extend(reversed(children))


def _new_paragraphs(texts: Iterable[str], seen: set[str]) -> Iterator[str]:
    """Yield the paragraphs of `texts` that are not in `seen`, and add them to it."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                yield paragraph.rstrip()
