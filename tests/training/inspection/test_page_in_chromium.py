"""The page in a browser: no error, and it shows what a reader points at and chooses."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedback_transformer_pytorch.model import FeedbackTransformer
from feedback_transformer_pytorch.training.inspection.findings import Findings, look
from feedback_transformer_pytorch.training.inspection.page import page, plotly_source
from feedback_transformer_pytorch.training.inspection.passage import passage_of
from feedback_transformer_pytorch.training.options import InspectOptions
from feedback_transformer_pytorch.training.saving.run import Run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

# Runs before all of the page.
LISTEN = """
window.problems = [];
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"])
  addEventListener(kind, (event) => problems.push([kind, event.message, event.reason, event.violatedDirective]));
for (const level of ["error", "warn"]) console[level] = (...parts) => problems.push(parts.join(" "));
"""

# Runs after all of it, and leaves a report in its place.
USE = """
(async () => {
  const find = (selector) => document.querySelector(selector);
  const tokens = [...document.querySelectorAll("#passage .token")], report = {};
  const note = async (name) => {
    await new Promise((done) => setTimeout(done));  // whatever goes wrong later is noted too
    report[name] = {
      heading: find("#facts h2").textContent, cost: find("#facts p").textContent,
      reads: find("#facts .reads").textContent,
      chosen: tokens.findIndex((token) => token.classList.contains("chosen")),
      colours: tokens.map((token) => token.style.backgroundColor),
      heads: find("#heads").data[0].z, distance: find("#distance").data[0].y, share: find("#mix").data[1].y,
    };
  };
  const point = (place) => tokens[place].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
  const choose = (id, value) => {
    find(id).value = value;
    find(id).dispatchEvent(new Event("change"));
  };
  await note("start");
  point(11);
  await note("pointed");
  choose("#layer", "1");
  choose("#head", "0");
  await note("chosen");
  tokens[15].click();
  point(3);
  await note("held");
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
  await note("moved");
  choose("#colour", "bits");
  await note("bits");
  report.drawn = [...document.querySelectorAll(".plot")].map((plot) => plot.querySelectorAll("svg").length);
  report.text = tokens.map((token) => token.textContent).join("");
  report.problems = problems;
  const found = document.createElement("pre");
  found.id = "report";
  found.textContent = JSON.stringify(report);
  document.documentElement.replaceChildren(found);
})().catch((error) => document.documentElement.append(`failed: ${error.stack}`));
"""


def report_of(content: str, folder: Path) -> dict[str, Any]:
    """What Chromium reports of a page that is used in it."""
    file = folder / "page.html"
    content = content.replace("<head>", f"<head><script>{LISTEN}</script>", 1)
    head, _, tail = content.rpartition("</body>")
    file.write_text(f"{head}<script>{USE}</script></body>{tail}", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=20000"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="report">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert found is not None, shown.stdout[-1000:] + shown.stderr[-1000:]
    report: dict[str, Any] = json.loads(html.unescape(found[1]))
    return report


def page_of(run: Run, **chosen: object) -> tuple[Findings, str]:
    passage = passage_of(run, InspectOptions.from_dict({"run": str(run.path), "out": "look", **chosen}))
    model = run.load_model(passage.num_tokens)
    assert isinstance(model, FeedbackTransformer)
    found = look(model, passage)
    return found, page(found, "run: <text>", model.config, plotly_source()).decode()


def test_the_page_shows_what_is_pointed_at(make_run: Callable[..., Run], text: Path, tmp_path: Path) -> None:
    found, content = page_of(make_run(), text=str(text), tokens=40, skip=2)
    report = report_of(content, tmp_path)
    assert report["problems"] == []
    assert all(count >= 1 for count in report["drawn"])
    assert report["text"] == "".join(found.words)
    places = {name: report[name]["chosen"] for name in ("start", "pointed", "chosen", "held", "moved", "bits")}
    assert places == {"start": 39, "pointed": 11, "chosen": 11, "held": 15, "moved": 14, "bits": 14}
    attention = found.attention
    for name, place in places.items():
        shown = report[name]
        assert shown["heading"] == f"token {3 + place} {'␣' if found.words[place] == ' ' else found.words[place]}"
        np.testing.assert_allclose(shown["heads"], attention[:, :, place, ::-1].reshape(4, 12), atol=1e-5)
        np.testing.assert_allclose(shown["share"], found.shares[:, place], atol=1e-4)
        mean = attention[:, :, place] if name in ("start", "pointed") else attention[1:2, :1, place]
        mean = mean.mean((0, 1))
        np.testing.assert_allclose(shown["distance"], mean[1:], atol=1e-5)
        back = int(mean.argmax())
        assert f"{back} back" in shown["reads"].split("%")[0]
    assert report["pointed"]["reads"].startswith("all layers, all heads: ")
    assert report["chosen"]["reads"].startswith("layer 2, head 1: ")
    colours = [report[name]["colours"] for name in ("start", "pointed", "chosen", "held", "moved", "bits")]
    assert len({json.dumps(of_all) for of_all in colours}) == 6
    assert colours[1][12:] == [""] * 28  # no token reads those after it
    assert colours[5][39]


def test_the_page_shows_labels(make_run: Callable[..., Run], tmp_path: Path) -> None:
    found, content = page_of(make_run(task="s3", seq_len=1), tokens=20)
    report = report_of(content, tmp_path)
    assert report["problems"] == []
    label = found.passage.word(found.passage.targets[11])
    assert report["pointed"]["cost"].startswith(f"Its label {label} took {found.bits[11]:.2f} bits. Predicted: ")
