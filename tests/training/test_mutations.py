"""Damaged files: one clear error within five seconds, never a traceback, never a changed file."""

import contextlib
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from feedback_transformer_pytorch import cli

SECONDS = 5  # of computing, as two workers and their processes share the machine
NEWEST = "checkpoints/00000004/"
MUTATIONS = st.sampled_from(["flip", "cut", "drop", "repeat", "insert", "empty"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with texts, a finished run on each, and the tokens of the texts in a cache beside it."""
    home = tmp_path_factory.mktemp("home")
    lines = [f"{n} sheep and {n * n} goats went over the bridge.\n" for n in range(200)]
    (home / "text.txt.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    (home / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for text in ("text.txt.gz", "text.jsonl"):
            code = cli.main(
                [
                    *(
                        "train",
                        str(home / text),
                        "--out",
                        str(home / f"run-{text}"),
                        "--dim=8",
                        "--depth=1",
                        "--heads=1",
                    ),
                    *("--heads=1", "--dim-head=8", "--seq-len=4", "--mem-len=8", "--batch-size=2", "--block-len=8"),
                    *("--max-updates=4", "--eval-every=4", "--eval-len=50", "--checkpoint-every=2", "--sample-len=2"),
                ]
            )
            assert code == 0
        yield home


def snapshot(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def computed() -> float:
    """Seconds that this process and those it started have computed."""
    return sum(os.times()[:4])


def mutated(content: bytes, mutation: str, place: float, byte: int) -> bytes:
    at = int(place * len(content))
    match mutation:
        case "flip":
            return content[:at] + bytes([content[at] ^ (1 << byte % 8)]) + content[at + 1 :]
        case "cut":
            return content[:at]
        case "drop":
            return content[:at] + content[at + 1 + byte :]
        case "repeat":
            return content[:at] + content[max(0, at - byte) :]
        case "insert":
            return content[:at] + bytes([byte]) + content[at:]
        case _:
            return b""


def commands(name: str, home: Path) -> list[list[str]]:
    """What reads a file of this name."""
    run = home / ("run-text.jsonl" if "jsonl" in name.split("/")[0] else "run-text.txt.gz")
    text = home / run.name.removeprefix("run-")
    resume = ["train", "--resume", "--out", str(run)]
    if "checkpoints" in name:
        return [resume]
    if name.endswith("metrics.jsonl"):
        return [resume, ["plot", str(run), "--out", str(home.parent / "plot.png")]]
    return [resume, ["eval", str(run), str(text)], ["generate", str(run), "--max-new-tokens=20"]]


@pytest.mark.parametrize("part", [0, 1])
@settings(max_examples=150, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), mutation=MUTATIONS, place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_file_is_one_error_and_nothing_changes(
    home: Path, part: int, data: st.DataObject, mutation: str, place: float, byte: int
) -> None:
    """Checkpoints, configurations, metrics, weights and texts, each damaged in some place in some way."""
    files = snapshot(home)
    name = data.draw(st.sampled_from([name for name in files if not name.endswith((".png", ".lock"))][part::2]))
    arguments = data.draw(st.sampled_from(commands(name, home)))
    (home / name).write_bytes(mutated(files[name], mutation, place, byte))
    before = snapshot(home)
    try:
        began = computed()
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = cli.main(arguments)
        assert computed() - began < SECONDS
        assert code in (0, 2)
        if code == 2:
            assert errors.getvalue().startswith("feedback-transformer: ")
            assert errors.getvalue().count("\n") == 1
        assert snapshot(home) in (before, files)  # what metrics.jsonl has beyond the checkpoint is cut off
        if NEWEST in name and before[name] != files[name]:
            assert code == 2
    finally:
        (home / name).write_bytes(files[name])
