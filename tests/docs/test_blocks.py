"""Every Python and shell block of the README, of CONTRIBUTING and of the documentation runs."""

import re
import shutil
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from pages import PAGES, ROOT, blocks, languages, skips

from feedback_transformer_pytorch.data import corpus

RUN = {"python", "shell"}
SHOWN = {"json", "text"}


def parameter(page: Path) -> Any:
    marks = [pytest.mark.readme] if page.name == "README.md" else []
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.fixture(params=map(parameter, PAGES))
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a README. The standard library's English is short here, since 2 MB of it take seconds to read."""
    paragraphs = [f"{n} sheep and {n * n} goats went over the bridge." for n in range(200)]
    monkeypatch.setattr(corpus, "standard_library_text", lambda: (paragraphs, paragraphs[::-1]))
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder")
def test_every_block_runs(page: Path) -> None:
    for block in blocks(page):
        try:
            block.evaluate()
        except SkipTest:
            continue


def test_no_block_is_of_a_language_that_nobody_runs(page: Path) -> None:
    unknown = {name for name in languages(page) - RUN - SHOWN if not name.startswith("{")}
    assert not unknown, f"{page.name} has blocks of {unknown}; write {RUN} for what runs, {SHOWN} for what does not"


def test_what_is_skipped_has_a_reason(page: Path) -> None:
    assert all(re.fullmatch(r'next "\S.+"', skip) for skip in skips(page))
