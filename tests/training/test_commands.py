import dataclasses
from pathlib import Path

import pytest

from feedback_transformer_pytorch.data import ByteTokenizer
from feedback_transformer_pytorch.training import commands
from feedback_transformer_pytorch.training.commands import draw_runs
from feedback_transformer_pytorch.training.options import PlotOptions, TrainOptions
from feedback_transformer_pytorch.training.saving.run import Run


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["one/run"], ["run"]),
        (["one/run", "two/run", "other"], ["one/run", "two/run", "other"]),
        (["one/run", "one/../one/run"], ["run", "run"]),
        (["a/b/run", "c/b/run", "b"], ["a/b/run", "c/b/run", "b"]),
    ],
)
def test_a_plot_names_each_run_by_the_end_of_its_path(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[str], names: list[str]
) -> None:
    drawn: list[str] = []

    def picture(curves: list[tuple[str, object]], **_: object) -> bytes:
        drawn.extend(name for name, _ in curves)
        return b""

    monkeypatch.setattr(commands, "comparison_png", picture)
    monkeypatch.chdir(tmp_path)
    for run in runs:
        if not Path(run).exists():
            Run.create(dataclasses.replace(options, out=run), ByteTokenizer())
    draw_runs(PlotOptions(runs=runs))
    assert drawn == names
