"""The experiments: every row can be run, and the page says what the results say."""

import dataclasses
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import page
import rows
import rules
import run
from drawing import DRAWINGS
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training import loop
from feedback_transformer_pytorch.training.interrupt import Stopped
from feedback_transformer_pytorch.training.saving.lock import locked
from feedback_transformer_pytorch.training.updates.trainer import Step
from figures import Result, accuracy_at, accuracy_up_to, core_seconds, formatted, reach
from overview import best, overview, settings
from summary import spread

ROWS = [row for table in rows.tables() for row in rows.rows(table)]
KINDS = {
    (row.table, row.options.get("model"), row.options.get("task") is None, "mastery" in row.options, *row.test): row
    for row in ROWS
}
TINY: dict[str, Any] = {
    "dim": 8,
    "heads": 2,
    "dim_head": 4,
    "mem_len": 16,
    "batch_size": 2,
    "block_len": 16,
    "max_updates": 2,
    "eval_every": 1,
    "log_every": 1,
    "eval_len": 64,
}


def tiny(row: rows.Row, folder: Path) -> rows.Row:
    """The row with a small model, two short runs and short tests, and with a short text if it reads text."""
    test = {name: {**arguments, **_short(arguments)} for name, arguments in row.test.items()}
    options = {**row.options, **TINY, "depth": min(row.options.get("depth", 2), 3)}
    if "task" not in options:
        text = folder / "text.txt"
        text.write_text("".join(f"{n} sheep and {n * n} goats went over the bridge.\n" for n in range(100)))
        options["files"] = [str(text)]
    return dataclasses.replace(row, seeds=[0, 1], lr=[0.001, 0.002], test=test, options=options)


def named(name: str) -> rows.Row:
    (row,) = run.chosen([name])
    return row


def _short(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: 32 for name in ("length", "sequences", "mem_len") if name in arguments}


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
    row = tiny(whole, tmp_path)
    run.run_row(row, tmp_path / "runs")
    found = json.loads(row.result.read_text())
    assert found["lr"] in row.lr
    assert [one["seed"] for one in found["runs"]] == [0, 1]
    assert [len(one["curve"]) for one in found["runs"]] == [2, 2]
    assert all(one["test"].keys() == row.test.keys() for one in found["runs"])
    every = {table: rows.rows(table) for table in rows.tables()}
    monkeypatch.setattr(page, "rows", lambda table: [row if one.name == row.name else one for one in every[table]])
    written = page.made()[page.HERE / "README.md"].decode()
    assert f"| {row.label}{' *' if row.additional else ''} |" in written

    row.result.unlink()
    monkeypatch.setattr(run, "train", lambda _: pytest.fail("a finished run was trained again"))
    run.run_row(row, tmp_path / "runs")
    assert json.loads(row.result.read_text()) == found


def test_a_row_that_was_stopped_goes_on(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, step = tiny(named("state-tracking/a5-feedback-2"), tmp_path), loop.Trainer.step
    run.run_row(row, tmp_path / "whole")
    whole = json.loads(row.result.read_text())
    row.result.unlink()

    def step_with_signal(self: loop.Trainer) -> Step:
        if self.update == 0:
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(loop.Trainer, "step", step_with_signal)
    with pytest.raises(Stopped):
        run.run_row(row, tmp_path / "stopped")
    monkeypatch.setattr(loop.Trainer, "step", step)
    assert not row.result.exists()
    run.run_row(row, tmp_path / "stopped")
    stopped = json.loads(row.result.read_text())
    assert [one["curve"] for one in stopped["runs"]] == [one["curve"] for one in whole["runs"]]


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    options = tiny(ROWS[0], tmp_path).run_options(0.001, 0, tmp_path)
    out = Path(options.out)
    with locked(out):
        (out / "config.yaml").write_text("its own")
        with pytest.raises(InputError, match="is being trained by another process"):
            run.train_timed(options)
        assert (out / "config.yaml").read_text() == "its own"


def test_a_run_whose_process_was_killed_starts_again(tmp_path: Path) -> None:
    options = tiny(ROWS[0], tmp_path).run_options(0.001, 0, tmp_path)
    out = Path(options.out)
    out.mkdir(parents=True)
    (out / "config.yaml").write_text("what is left of it")
    assert run.train_timed(options) > 0
    assert (out / "model.safetensors").exists()


def test_the_learning_rate_that_masters_the_longest_sequences_is_chosen(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[float, dict[str, Any]] = {
        1.0: {"block_len": 4, "final_loss": 0.1},
        2.0: {"block_len": 8, "final_loss": 0.9},
        3.0: {"block_len": 8, "final_loss": 0.5},
        4.0: {"block_len": None, "final_loss": None},  # diverged
    }
    row = dataclasses.replace(ROWS[0], lr=list(found), seeds=[0])
    monkeypatch.setattr(run, "trained", lambda row, lr, *_: found[lr])
    monkeypatch.setattr(run, "tested", lambda row, lr, *_: {"lr": lr})
    run.run_row(row, tmp_path)
    result = json.loads(row.result.read_text())
    assert result["lr"] == 3.0
    assert result["runs"] == [{"lr": 3.0}]
    assert result["lengths_by_lr"] == {"1": 4, "2": 8, "3": 8, "4": None}


def test_the_loss_of_grown_sequences_is_that_of_training_at_their_length() -> None:
    intervals = [{"loss": loss, "block_len": length} for loss, length in ((0.1, 2), (0.6, 3), (0.4, 3))]
    assert run.final_loss(9.0, intervals, grown=True) == pytest.approx(0.5)
    assert run.final_loss(9.0, intervals, grown=False) == 9.0


def test_the_page_is_up_to_date() -> None:
    page.main(["--check"])


def test_a_page_that_is_not_up_to_date_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(page.MAIN_README, tmp_path / "main.md")
    monkeypatch.setattr(page, "HERE", tmp_path)
    monkeypatch.setattr(page, "MAIN_README", tmp_path / "main.md")
    with pytest.raises(SystemExit, match=r"not up to date: .*README.md"):
        page.main(["--check"])
    page.main([])
    page.main(["--check"])


@pytest.mark.parametrize("task", ["algorithmic-3", "algorithmic-5"])
def test_the_text_says_what_simple_rules_get_right(task: str) -> None:
    text = rows.shared("algorithmic")["text"]
    for share in (rules.last_assigned(task), rules.counted(task)):
        assert f"{100 * share:.1f} %" in text


def test_names_choose_tables_and_rows() -> None:
    name = f"{ROWS[0].table}/{ROWS[0].name}"
    assert [row.name for row in run.chosen([name])] == [ROWS[0].name]
    assert run.chosen([ROWS[0].table, name]) == run.chosen([ROWS[0].table])
    additional = [row for row in ROWS if row.additional]
    assert [row for row in ROWS if row not in run.chosen([])] == additional != []
    assert run.chosen([f"{additional[0].table}/{additional[0].name}"]) == additional[:1]
    with pytest.raises(SystemExit, match="there is no 'x'"):
        run.chosen(["x"])


def test_results_with_other_defaults_do_not_count(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[0]
    row.result.parent.mkdir(parents=True)
    row.result.write_text(json.dumps({"settings": row.settings}))
    assert row.found() is not None
    options = row.settings["options"]
    for changed, counts in (({"clip": 9.0}, False), ({"keep": 9}, True)):
        row.result.write_text(json.dumps({"settings": {**row.settings, "options": {**options, **changed}}}))
        assert (row.found() is not None) == counts
    del options["growth"]  # as if the option were newer than the results
    row.result.write_text(json.dumps({"settings": {**row.settings, "options": options}}))
    assert row.found() is not None


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


def test_a_row_whose_text_is_missing_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row = named("text/small-feedback")
    row = dataclasses.replace(row, options={**row.options, "files": [str(tmp_path / "missing.txt")]})
    assert run.run_side_by_side([row], 1, tmp_path) == ["text/small-feedback"]
    shown = capfd.readouterr().err
    assert shown.startswith("text/small-feedback: ")
    assert "missing.txt" in shown
    assert shown.count("\n") == 1


def wait_for_a_signal(row: rows.Row, runs: Path) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    (runs / "waits").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (runs / "ended").touch()


def test_ctrl_c_stops_the_rows(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "waits").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background ignores it
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(SystemExit) as raised:
            run.run_side_by_side([ROWS[0], ROWS[1]], 1, tmp_path, wait_for_a_signal)
    finally:
        signal.signal(signal.SIGINT, before)
    assert raised.value.code == 130
    assert (tmp_path / "ended").exists()


def test_accuracy_up_to_a_length_is_of_the_shortest_test_that_is_long_enough() -> None:
    def by_position(share: float, length: int) -> dict[str, Any]:
        return {"accuracy": share, "by_position": [share] * length}

    tests = {"4": by_position(0.9, 4), "8": by_position(0.2, 8), "8, M 16": by_position(0.3, 8)}
    accuracies = [accuracy_up_to({"test": {**tests, "test": {"accuracy": 1.0}}}, length) for length in (2, 4, 5, 8, 9)]
    assert accuracies == [0.9, 0.9, 0.3, 0.3, None]


def result(label: str, parameters: int, accuracies: Sequence[float | None], curve: Sequence[Any] = ()) -> Result:
    """A row with runs of these accuracies at all of 32 positions, None for one that diverged."""
    runs = [
        {"diverged": "at once", "curve": [], "test": {}}
        if share is None
        else {
            "parameters": parameters,
            "seconds": 10.0,
            "updates": 2,
            "curve": curve,
            "test": {"32": {"accuracy": share, "labels": 3200, "by_position": [share] * 32}},
        }
        for share in accuracies
    ]
    return Result(dataclasses.replace(ROWS[0], label=label), {"runs": runs})


def test_the_best_row_is_shown_with_its_settings() -> None:
    at_32 = {"show": "at", "length": 32, "format": "percent"}
    found = [
        result("Feedback, L 1, M 8", 9, [0.9, 0.8]),
        result("Feedback, L 1", 20, [1.0, None]),
        result("Transformer-XL", 10, [1.0]),
    ]
    assert best([at_32], found) is found[2]  # as good, and smaller
    assert best([at_32], found[:2]) is found[1]
    bits = {"show": "at", "length": 32, "format": "bits"}
    assert best([bits], [result("all diverged", 1, [None, None]), found[0]]) is found[0]
    assert [settings(one) for one in found] == ["L 1, M 8", "L 1", "XL, L 1"]
    with pytest.raises(ValueError, match="which names no row"):
        overview({}, ["other/row"])


def test_runs_that_diverged_are_left_out_of_plots_and_times() -> None:
    found = [result(label, 9, [None, 0.9], [[1, 0.5], [2, 0.9]]) for label in ("Feedback, L 1", "Feedback, L 2")]
    for draw in DRAWINGS.values():
        assert draw([("one", found)]).startswith(b"<?xml")
    assert core_seconds(found[0]) == 10 * (2 + len(ROWS[0].lr) - 1)
    assert core_seconds(result("Feedback, L 1", 9, [None])) == 0


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
