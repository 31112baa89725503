"""The experiments: every row can be run, and the page says what the results say."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import page
import rows
import run
from figures import accuracy_at, formatted, reach
from summary import spread

ROWS = [row for table in rows.tables() for row in rows.rows(table)]
KINDS = {row.table: row for row in ROWS}
TINY: dict[str, Any] = {
    "dim": 8,
    "depth": 1,
    "heads": 2,
    "dim_head": 4,
    "mem_len": 8,
    "batch_size": 2,
    "block_len": 16,
    "max_updates": 2,
    "eval_every": 1,
    "log_every": 1,
    "eval_len": 64,
    "stored": "mix",
    "seq_len": 1,
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for results, at first empty."""
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}/{row.name}")
def test_every_row_has_options_that_training_takes(row: rows.Row, tmp_path: Path) -> None:
    assert len(row.lr) in (2, 3)
    assert len(row.seeds) >= 3
    for lr in row.lr:
        assert row.run_options(lr, row.seeds[0], tmp_path).lr == lr


@pytest.mark.parametrize("whole", KINDS.values(), ids=lambda row: f"{row.table}/{row.name}")
def test_each_kind_of_experiment_from_end_to_end(
    whole: rows.Row, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = {name: {**arguments, **_short(arguments)} for name, arguments in whole.test.items()}
    tiny = {"seeds": [0, 1], "lr": [0.001], "test": test, "options": {**whole.options, **TINY}}
    row = rows.Row(**{**vars(whole), **tiny})
    run.run_row(row, tmp_path / "runs")
    found = json.loads(row.result.read_text())
    assert found["lr"] in row.lr
    assert [one["seed"] for one in found["runs"]] == [0, 1]
    assert [len(one["curve"]) for one in found["runs"]] == [2, 2]
    monkeypatch.setattr(page, "rows", lambda table: [row] if table == row.table else [])
    written = page.made()[page.HERE / "README.md"].decode()
    assert f"| {row.label} |" in written

    row.result.unlink()
    monkeypatch.setattr(run, "train", lambda _: pytest.fail("a finished run was trained again"))
    run.run_row(row, tmp_path / "runs")
    assert json.loads(row.result.read_text()) == found


def _short(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: 32 for name in ("length", "sequences") if name in arguments}


def test_the_page_is_up_to_date() -> None:
    page.main(["--check"])


def test_a_page_that_is_not_up_to_date_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "HERE", tmp_path)
    with pytest.raises(SystemExit, match="not up to date: README.md"):
        page.main(["--check"])
    page.main([])
    page.main(["--check"])


def test_names_choose_tables_and_rows() -> None:
    name = f"{ROWS[0].table}/{ROWS[0].name}"
    assert [row.name for row in run.chosen([name])] == [ROWS[0].name]
    assert run.chosen([ROWS[0].table, name]) == run.chosen([ROWS[0].table])
    assert len(run.chosen([])) == len(ROWS)
    with pytest.raises(SystemExit, match="there is no 'x'"):
        run.chosen(["x"])


def test_results_with_other_defaults_do_not_count(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[0]
    row.result.parent.mkdir(parents=True)
    row.result.write_text(json.dumps({"settings": row.settings}))
    assert row.found() is not None
    row.result.write_text(
        json.dumps({"settings": {**row.settings, "options": {**row.settings["options"], "clip": 9.0}}})
    )
    assert row.found() is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{label: x, group: c}", "has the group 'c'; the groups of its table are a, b"),
        ("{label: x, group: b}", "has no 'test'"),
        ("{group: a}", "has no 'label'"),
        ("", "has the group ''"),
        ("{label: x, group: a, sed: 1}", "has 'sed'"),
    ],
)
def test_a_mistake_in_a_row_is_named(row: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "HERE", tmp_path)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / rows.TABLE).write_text("{order: 1, seeds: [0], lr: [1], groups: {a: {test: {}}, b: {}}}")
    (tmp_path / "t" / "one.yaml").write_text(row)
    with pytest.raises(ValueError, match=re.escape(message)):
        rows.rows("t")


def fail_if_bad(row: rows.Row, runs: Path) -> None:
    if row.name == "bad":
        os._exit(9)  # as a process that the system kills
    (runs / row.name).touch()


def test_a_row_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    todo = [dataclasses.replace(ROWS[0], name=name) for name in ("bad", "good", "fine")]
    assert run.run_side_by_side(todo, 2, tmp_path, fail_if_bad) == [f"{ROWS[0].table}/bad"]
    assert {path.name for path in tmp_path.iterdir()} == {"good", "fine"}


def test_accuracy_at_a_length_is_that_of_its_last_quarter() -> None:
    assert accuracy_at([0.0, 0.0, 0.0, 0.0, 0.0, None, 0.5, 1.0, 0.0], 8) == 0.75
    assert accuracy_at([None, None], 2) is None


def test_reach_is_the_last_position_before_the_first_miss() -> None:
    assert reach([1.0, None, 0.9, 0.89, 1.0]) == 3
    assert reach([0.5]) == 0
    assert reach([1.0, 1.0]) == 2


def test_a_cell_gives_median_and_range() -> None:
    assert spread([0.5, 0.7, 0.6], lambda found: formatted(found, "percent")) == "60.0 (50.0 to 70.0)"
    assert spread([0.5], lambda found: formatted(found, "percent")) == "50.0"
    assert spread([None], lambda found: formatted(found, "bits")) == "-"
    assert spread([0.5, None, 0.7], lambda found: formatted(found, "percent")) == "60.0 (50.0 to 70.0) in 2 of 3"
    assert spread([123456.0, 123456.0], lambda found: formatted(found, "number")) == "123,456"
