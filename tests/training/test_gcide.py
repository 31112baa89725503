"""The whole way from 40 MB of text to bits per byte, on the dictionary that Debian packs as dict-gcide."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from feedback_transformer_pytorch import cli

INSTALLED = Path("/usr/share/dictd/gcide.dict.dz")


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    """The text: installed, or fetched as a package and unpacked in a temporary folder, or else the test is skipped."""
    packed = INSTALLED
    if not packed.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            pytest.skip("dict-gcide is not installed, and there is no apt-get")
        subprocess.run(["apt-get", "download", "dict-gcide"], cwd=tmp_path, capture_output=True, check=False)
        packages = list(tmp_path.glob("*.deb"))
        if not packages:
            pytest.skip("dict-gcide is not installed, and cannot be fetched")
        subprocess.run(["dpkg-deb", "-x", packages[0], tmp_path / "package"], check=True)
        packed = tmp_path / "package" / INSTALLED.relative_to("/")
    text = tmp_path / "gcide.txt"
    text.write_bytes(gzip.decompress(packed.read_bytes()))
    return text


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", ["feedback", "transformer-xl"])
def test_forty_megabytes_are_learnt_from(dictionary: Path, tmp_path: Path, model: str) -> None:
    """A few updates on all of it; what is held out costs less and less, and less than eight bits a byte."""
    run = tmp_path / "run"
    small = ["--preset=tiny", f"--model={model}", "--eval-every=20", "--max-updates=40", "--warmup-updates=5"]
    assert cli.main(["train", str(dictionary), "--out", str(run), *small]) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    heldout = [record["bits_per_byte"] for record in records if record["kind"] == "validation"]
    assert heldout[1] < heldout[0] < 8
