"""A headless Chromium, driven over the WebDriver protocol (W3C), of which a few commands suffice."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1000"]


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, url: str) -> None:
        """Loads a page."""
        send(f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script in the page returns."""
        return send(f"{self._session}/execute/sync", {"script": script, "args": []})

    def messages(self) -> list[str]:
        """What pages wrote to the console since the last call, warnings and errors alone."""
        entries = send(f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self) -> str:
        """The window as a PNG, in base64."""
        return send(f"{self._session}/screenshot")


@contextmanager
def browser() -> Iterator[Browser]:
    """A window that is closed in the end."""
    assert DRIVER is not None
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            port = next(found[1] for line in driver.stdout if (found := re.search(r"on port (\d+)\.", line)))
            options = {"binary": CHROMIUM, "args": ARGUMENTS}
            capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            server = f"http://127.0.0.1:{port}/session"
            session = f"{server}/{send(server, {'capabilities': {'alwaysMatch': capabilities}})['sessionId']}"
            try:
                yield Browser(session)
            finally:
                send(session, method="DELETE")
        finally:
            driver.terminate()


def send(url: str, content: dict[str, Any] | None = None, *, method: str | None = None) -> Any:
    """A command's value; without content it is a question."""
    body = None if content is None else json.dumps(content).encode()
    with urlopen(Request(url, body, {"Content-Type": "application/json"}, method=method), timeout=60) as answer:
        return json.load(answer)["value"]
