"""Figures that stand in sentences, and in tables that no program writes, are those of the results."""

import functools
import re
from pathlib import Path
from statistics import median

import pytest
from pages import ROOT, SITE

import rows
import rules
from figures import Result


@functools.cache
def result(name: str) -> Result:
    """The result of TABLE/ROW."""
    table, _, of_table = name.partition("/")
    (row,) = (row for row in rows.rows(table) if row.name == of_table)
    found = row.found()
    assert found is not None, f"{name} has no result"
    return Result(row, found)


def at_512(name: str) -> float:
    """The accuracy of a row of state tracking at 512, in %: the median over the seeds."""
    return 100 * median(result(f"state-tracking/{name}").values({"show": "at", "length": 512}))


def bits(name: str) -> float:
    """Bits per byte of a row, the median over the seeds."""
    return median(result(name).values({"show": "validation"}))


def read(path: Path) -> str:
    """A page with every gap between words a single space."""
    return re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))


def test_the_limits_in_the_readme() -> None:
    text = read(ROOT / "README.md")
    (limits,) = re.findall(r"accuracy at 512 falls to (\d+) % in parity \(L 1\) and to about (\d+) % in S5 and", text)
    assert int(limits[0]) == round(at_512("z2-feedback-1"))
    rows_of_both = ("s5-feedback-2", "mod5-feedback-1", "mod5-feedback-2")
    assert [at_512(name) for name in rows_of_both] == pytest.approx([int(limits[1])] * 3, abs=1.5)
    (short,) = re.findall(r"With M 8, the medians of parity and modulo 5 are above 90 %, of S5 (\d+) %", text)
    assert int(short) == round(at_512("s5-feedback-2-window-8"))
    assert min(at_512(f"{name}-window-8") for name in ("z2-feedback-1", "mod5-feedback-1", "mod5-feedback-2")) > 90
    assert f"repeating the last assigned value gets {100 * rules.last_assigned('algorithmic-3'):.1f}" in text


def test_how_far_the_transformers_in_the_readme_got() -> None:
    text = read(ROOT / "README.md")
    (shown,) = re.findall(r"In S5 and modulo 5, the Transformers shown got to (\d+) and (\d+) tokens", text)
    for group, name, count in zip(("S5", "arithmetic modulo 5"), ("s5", "mod5"), shown, strict=True):
        (depth,) = re.findall(rf"\| {group}, at 32 and at 512 \|.*\(L (\d)\) \|\n", (ROOT / "README.md").read_text())
        lengths = result(f"state-tracking/{name}-transformer-{depth}").values({"show": "block_len"})
        assert median(lengths) == int(count)


def test_the_memory_lengths_on_the_page_of_settings() -> None:
    text = (SITE / "settings.md").read_text(encoding="utf-8")
    for title, task, depths in (("parity", "z2", (1, 2)), ("arithmetic modulo 5", "mod5", (1, 2)), ("S5", "s5", (2,))):
        for depth in depths:
            short, long = at_512(f"{task}-feedback-{depth}-window-8"), at_512(f"{task}-feedback-{depth}")
            assert f"| {title}, {depth} | {short:.1f} | {long:.1f} |" in text


def test_the_segment_lengths_on_the_page_of_settings() -> None:
    text = (SITE / "settings.md").read_text(encoding="utf-8")
    longer = [bits(f"settings/text-seq-len-{length}") for length in ("02", "04", "08", "16")]
    gaps = [segments - bits("settings/text-0-defaults") for segments in longer]
    assert f"better by {min(gaps):.2f} to {max(gaps):.2f} bits per byte" in text


def test_what_the_text_table_says_of_transformer_xl() -> None:
    text = read(ROOT / "experiments" / "text" / "table.yaml")
    gaps = [bits(f"text/{size}-transformer-xl") - bits(f"text/{size}-feedback") for size in ("small", "large")]
    assert re.search(
        rf"ahead of\s+Transformer-XL by {gaps[0]:.2f} bits per byte with L 4, and behind by {-gaps[1]:.2f}", text
    )
    for size, gap in zip(("small", "large"), gaps, strict=True):
        seeds = result(f"text/{size}-feedback").values({"show": "validation"})
        assert max(seeds) - min(seeds) > abs(gap)  # "its own seeds differ by more"
        times = [
            median(result(f"text/{size}-{model}").values({"show": "ms"})) for model in ("feedback", "transformer-xl")
        ]
        assert times[0] / times[1] == pytest.approx(2 / 3, abs=0.05)


def test_what_is_said_of_the_dictionary() -> None:
    names = ("text/dictionary-transformer-xl", "text/dictionary-feedback")
    shown = [f"{bits(name):.3f}" for name in names]
    assert f"Feedback has {shown[1]} and Transformer-XL {shown[0]}" in read(ROOT / "LOG.md")
    seeds = result(names[1]).values({"show": "validation"})
    assert min(seeds) < bits(names[0]) < max(seeds)  # "smaller than that of the seeds"
    times = [median(result(name).values({"show": "ms"})) for name in names]
    assert times[1] / times[0] == pytest.approx(1, abs=0.05)  # "as long"
