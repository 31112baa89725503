"""What the tests of the command line share."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from feedback_transformer_pytorch import cli
from feedback_transformer_pytorch.training.saving.run import Run

SMALL = [
    *("--dim=16", "--depth=2", "--heads=2", "--dim-head=8", "--seq-len=4", "--mem-len=16"),
    *("--batch-size=4", "--block-len=16", "--max-updates=4", "--warmup-updates=1"),
    *("--eval-every=2", "--log-every=1", "--eval-len=200", "--sample-len=5"),
]
COMMAND = [sys.executable, "-m", "feedback_transformer_pytorch.cli"]


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def write_text(path: Path) -> None:
    path.write_text("".join(f"{n} sheep and {n * n} goats went over the bridge.\n" for n in range(400)))


def train(*arguments: str | Path) -> None:
    assert cli.main(["train", *SMALL, *map(str, arguments)]) == 0


def metrics(run: Path, kind: str, name: str) -> list[float]:
    return [record[name] for record in Run.open(run).metrics() if record["kind"] == kind]


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as raised:
        cli.main(["train", "--out=run", "--print_config", *arguments])
    assert raised.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config
