"""The documentation as a reader meets it: built, its links followed, opened in a browser (`make release-check`)."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from browser import CHROMIUM, DRIVER, Browser, browser
from pages import ROOT, SITE

pytestmark = pytest.mark.release


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder of the built pages."""
    for module in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; it comes with the extra `docs`")
    out = ROOT / "docs" / "_build" / "html"
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html", SITE, out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return out


class Page(HTMLParser):
    """The targets and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.resources: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value}
        self.ids |= {given["id"]} if "id" in given else set()
        for name in ("href", "src"):
            if name in given:
                (self.links if tag == "a" else self.resources).add(given[name])


def test_no_internal_link_is_broken(built: Path) -> None:
    pages = {path: Page(path) for path in built.glob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links | page.resources:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = target.exists() and (
                not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].ids
            )
            if not found:
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_the_site_loads_nothing_from_elsewhere(built: Path) -> None:
    loaded = {link for path in built.glob("*.html") for link in Page(path).resources}
    assert not [link for link in loaded if urlsplit(link).netloc]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(built: Path) -> Iterator[str]:
    """Where a server on this machine has the site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=built)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def window(address: str) -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium or its driver is not installed: apt-get install chromium chromium-driver")
    with browser() as opened:
        yield opened


def test_no_page_has_a_message_in_the_console(built: Path, address: str, window: Browser) -> None:
    found = {}
    for path in sorted(built.glob("*.html")):
        window.open(f"{address}/{path.name}")
        if messages := window.messages():
            found[path.name] = messages
    assert not found


def test_search_finds_the_model(address: str, window: Browser) -> None:
    window.open(f"{address}/search.html?q=FeedbackTransformer")
    links: list[str] = []
    for _ in range(100):
        links = window.run("return [...document.querySelectorAll('#search-results li a')].map(link => link.href)")
        if links:
            break
        time.sleep(0.1)
    assert any("api.html" in link for link in links)
