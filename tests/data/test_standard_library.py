import sys
import sysconfig
from pathlib import Path

import pytest

from feedback_transformer_pytorch.data import standard_library_text
from feedback_transformer_pytorch.errors import InputError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the standard library, with two topics for the language reference."""
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.get)
    monkeypatch.setattr(
        "feedback_transformer_pytorch.data.standard_library.topics",
        {"while": "The while statement.\n\nShared.\n", "assert": "The assert statement.\n \n   Indented\n   lines.\n"},
    )
    return tmp_path


def test_topics_come_by_name_and_docstrings_by_path_and_line(library: Path) -> None:
    (library / "b.py").write_text('"""Module b."""')
    (library / "a").mkdir()
    (library / "a" / "z.py").write_text(
        '"""Module z.\n\n    Its second paragraph.\n    """\n'
        "class C:\n"
        '    """Class C."""\n'
        "    try:\n"
        "        async def method(self):\n"
        '            """Method."""\n'
        "            def inner():\n"
        '                """Inner."""\n'
        "    except NameError:\n"
        "        def fallback():\n"
        '            """Fallback."""\n'
        "def after():\n"
        '    """After."""\n'
        "    return 'no docstring'\n"
    )
    topics, docstrings = standard_library_text()
    assert topics == ["The assert statement.", "   Indented\n   lines.", "The while statement.", "Shared."]
    assert docstrings == [
        *("Module z.", "Its second paragraph.", "Class C.", "Method.", "Inner.", "Fallback.", "After."),
        "Module b.",
    ]


def test_repeats_are_dropped_over_both_lists_however_they_are_wrapped(library: Path) -> None:
    (library / "a.py").write_text('"""Indented lines.\n\nOnce.\n\nShared."""')
    (library / "b.py").write_text('"""Once.\n\nTwice\nover."""\ndef f():\n    """  Twice over."""')
    assert standard_library_text()[1] == ["Once.", "Twice\nover."]


def test_tests_and_installed_packages_are_no_part_of_it(library: Path) -> None:
    for folder in ("site-packages", "dist-packages", "test", "json/tests", "json"):
        (library / folder).mkdir(parents=True, exist_ok=True)
        (library / folder / "module.py").write_text(f'"""In {folder}."""')
    (library / "notes.txt").write_text('"""No Python."""')
    assert standard_library_text()[1] == ["In json."]


def test_sources_are_read_without_being_run_or_complained_about(library: Path) -> None:
    (library / "odd.py").write_bytes(b'# coding: latin-1\n"""Caf\xe9."""\npattern = "\\d"\nraise SystemExit\n')
    assert standard_library_text()[1] == ["Café."]
    assert "odd" not in sys.modules


@pytest.mark.parametrize("folder", ["", "missing"])
def test_a_python_without_sources_is_reported(library: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(library / folder)}.get)
    with pytest.raises(InputError, match="give text files instead"):
        standard_library_text()
