"""The pages that a reader meets in the repository itself."""

import re
from urllib.parse import urlsplit

import pytest
from pages import ROOT

NAMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md", "docs/design.md", "experiments/README.md"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_links_to_exists(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = {urlsplit(link).path for link in links if not urlsplit(link).scheme}
    assert not [link for link in local if link and not (page.parent / link).exists()]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
