"""The benchmark of generation, from end to end at its smallest size."""

import json
from pathlib import Path

import pytest

import generation

SMALL = ["--shapes", "tiny", "--contestants", "fused", "--repeats", "2", "--tokens", "2", "--prompt", "20"]


@pytest.mark.filterwarnings("ignore:weights in .* are read as float32:UserWarning")
def test_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generation, "read_rate", lambda *_: 1e9)
    out = tmp_path / "generation.json"
    generation.main([*SMALL, "--prefill", "16", "--skip-tests", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert {result["part"] for result in results} == set(generation.PARTS)
    timed = [result for result in results if "contestant" in result]
    assert all(len(result["times_ms"]) == 2 and result["median_ms"] > 0 for result in timed)
    of_weights = {result["contestant"]: result for result in timed if result["part"] == "weights"}
    assert list(of_weights) == ["float32", "bfloat16", "int8", "GPT-2", "GPT-2, window"]
    assert of_weights["float32"]["state_bytes"] > 0
    assert "GPT-2, window" in capsys.readouterr().out
