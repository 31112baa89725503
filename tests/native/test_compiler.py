"""The key of a compiled kernel."""

import shutil
from pathlib import Path

import pytest

from feedback_transformer_pytorch.recurrence.native import compiler


def test_a_change_of_any_source_file_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kernel in the cache is that of all headers."""
    command = compiler.find_compiler()
    if command is None:
        pytest.skip("no C++ compiler")
    key = compiler.build_key(command)
    copy = tmp_path / "source"
    shutil.copytree(compiler.SOURCE.parent, copy)
    monkeypatch.setattr(compiler, "SOURCE", copy / compiler.SOURCE.name)
    assert compiler.build_key(command) == key
    assert compiler.build_key([*command, "-ffp-contract=off"]) != key
    files = sorted(copy.iterdir())
    assert len(files) > 1
    keys = set()
    for file in files:
        text = file.read_text("utf-8")
        file.write_text(text + "// changed\n", "utf-8")
        keys.add(compiler.build_key(command))
        file.write_text(text, "utf-8")
    assert len(keys - {key}) == len(files)
