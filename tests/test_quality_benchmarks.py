"""The benchmarks that choose and prove the defaults of training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quality_table
import state_tracking
import text_quality
from feedback_transformer_pytorch import FeedbackTransformer
from feedback_transformer_pytorch.position import POSITIONS
from grid import RESULTS
from runs import gradient_norms, only_finite, read_runs, with_settings, write_runs
from state_gradient import StateGradientClamp

CURRENT = [position for position in POSITIONS if position != "legacy"]
SMALL = [
    *("--dim", "8", "--heads", "2", "--dim-head", "4", "--batch-size", "4", "--train-len", "4", "--test-len", "12"),
    *("--test-rows", "4", "--mem-len", "4", "--updates", "2", "--test-every", "1", "--seeds", "0"),
]


@pytest.mark.parametrize("position", CURRENT)
@pytest.mark.parametrize("model", state_tracking.MODELS)
def test_state_tracking_from_end_to_end(
    model: str, position: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder" / "state.json"
    argv = [*SMALL, "--model", model, "--position", position, "--out", str(out)]
    state_tracking.main(argv)
    [run] = read_runs(out)
    assert run["seed"] == 0
    assert run["settings"]["model"] == model
    assert run["environment"]["threads"] == 1
    assert [point["update"] for point in run["curve"]] == [1, 2]
    assert run["figures"]["update"] == 2
    assert 0 <= run["figures"]["accuracy_12_last_8"] <= 1
    assert run["figures"]["grad_norm_median"] <= run["figures"]["grad_norm_99"] <= run["figures"]["grad_norm_max"]
    content = out.read_bytes()
    capsys.readouterr()
    state_tracking.main(argv)
    assert "already" in capsys.readouterr().out
    assert out.read_bytes() == content


def test_a_run_depends_on_settings_and_seed_alone() -> None:
    settings = state_tracking.resolve({"position": "t5", "updates": 2, "test_rows": 4, "dim": 8, "batch_size": 4})
    first, second, other = (state_tracking.train(settings, seed)["figures"] for seed in (0, 0, 1))
    assert first["loss"] == second["loss"] != other["loss"]


def test_a_grid_takes_what_is_given_for_all_its_runs(tmp_path: Path) -> None:
    out = tmp_path / "state.json"
    state_tracking.main([*SMALL, "--position", "t5", "--grid", "clip", "--seeds", "1", "0", "--out", str(out)])
    runs = read_runs(out)
    assert [(run["settings"]["clip"], run["settings"]["lr"], run["seed"]) for run in runs] == [
        (clip, lr, seed) for clip in (0.1, 1.0) for lr in (1e-3, 2e-3) for seed in (0, 1)
    ]
    assert all(run["settings"]["updates"] == 2 for run in runs)


@pytest.mark.parametrize("position", CURRENT)
def test_initialisations(position: str) -> None:
    weights = {}
    for name in ("torch", "normal", "normal-position"):
        torch.manual_seed(0)
        options = state_tracking.StateTracking(position=position, initialisation=name, dim=32)
        weights[name] = state_tracking.build(options, 6).state_dict()
    for name, default in weights["torch"].items():
        normal, with_position = weights["normal"][name], weights["normal-position"][name]
        if "position" in name:
            torch.testing.assert_close(normal, default)
            assert 0.01 < with_position.std() < 0.03 < default.std()
        elif default.ndim >= 2:
            assert 0.015 < normal.std() < 0.025
        elif name.endswith("bias"):
            assert not normal.any()
        else:
            torch.testing.assert_close(normal, default)


def test_the_clamp_limits_the_gradient_of_what_is_stored() -> None:
    """A high limit changes nothing; a limit of 0 cuts the memory off, as if it had been detached after each token."""
    tokens = torch.randint(5, (2, 6))

    def gradients(limit: float | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = FeedbackTransformer(num_tokens=5, dim=8, depth=2, mem_len=4, seq_len=1, heads=2, dim_head=4).double()
        clamp = None if limit is None else StateGradientClamp(model, limit)
        model(tokens).square().sum().backward()
        if clamp is not None:
            assert clamp.share == (0 if limit else 1)
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    plain, high, zero = gradients(None), gradients(1e9), gradients(0.0)
    for name, gradient in plain.items():
        torch.testing.assert_close(high[name], gradient)
    assert not zero["decoder.stack.layer_weight"].any()
    assert plain["decoder.stack.layer_weight"].any()


def test_a_run_stops_early_when_it_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = iter([0.5, 1.0, 0.9, 1.0, 1.0])
    monkeypatch.setattr(state_tracking, "accuracies", lambda *_: {"accuracy_128": next(solved)})
    changes = {"position": "t5", "updates": 9, "test_every": 1, "stop_after": 2, "dim": 8, "batch_size": 1}
    figures = state_tracking.train(state_tracking.resolve(changes), 0)["figures"]
    assert (figures["update"], figures["update_solved"], figures["lowest_after"]) == (5, 2, 0.9)


@pytest.fixture
def _small_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} sheep and {n * n} goats went over the bridge.\n" for n in range(400)))
    small = {"files": [str(text)], "dim": 8, "heads": 2, "dim_head": 4, "mem_len": 4, "batch_size": 4, "block_len": 8}
    for name, value in {**small, "eval_every": 1, "eval_len": 100}.items():
        monkeypatch.setitem(text_quality.SIZE, name, value)


@pytest.mark.usefixtures("_small_text")
def test_text_quality_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "text.json"
    argv = ["--grid", "equal", "--seeds", "0", "--max-updates", "2", "--clip", "0.5", "--out", str(out)]
    text_quality.main(argv)
    runs = read_runs(out)
    assert [run["settings"]["model"] for run in runs] == ["feedback", "transformer-xl"]
    for run in runs:
        assert run["settings"]["clip"] == 0.5
        assert run["settings"]["warmup_updates"] == text_quality.TrainOptions.warmup_updates
        assert [point["update"] for point in run["curve"]] == [1, 2]
        assert run["figures"]["bits_per_byte_2"] == run["curve"][1]["bits_per_byte"]
        assert run["figures"]["seconds"] == run["curve"][1]["seconds"]
        assert run["figures"]["skipped"] == 0
        assert run["figures"]["loss_2_2"] > 0
    content = out.read_bytes()
    capsys.readouterr()
    text_quality.main(argv)
    assert capsys.readouterr().out.count("already") == 2
    assert out.read_bytes() == content


@pytest.mark.parametrize("name", quality_table.BENCHMARKS)
def test_no_grid_has_a_run_twice(name: str) -> None:
    benchmark = quality_table.BENCHMARKS[name]
    for grid in benchmark.grids.values():
        runs = [json.dumps(benchmark.resolve(changes), sort_keys=True) for changes in grid.settings]
        assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("name", quality_table.BENCHMARKS)
def test_the_runs_in_the_repository_are_found_by_their_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = quality_table.BENCHMARKS[name]
    runs = read_runs(RESULTS / f"{name}.json")
    for run in runs:
        assert run in with_settings(runs, benchmark.resolve(run["settings"]), benchmark)
    quality_table.main([name])
    assert capsys.readouterr().out.count("### ") > 3


def test_rows_of_a_table_may_change_different_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "state.json"
    environment = {"cpu": "a processor", "threads": 1, "torch": "2.11"}
    write_runs(
        out,
        [
            {"settings": state_tracking.resolve(changes), "seed": 0, "environment": environment}
            | {"figures": {"loss": 0.25}, "curve": []}
            for changes in state_tracking.GRIDS["models"].settings
        ],
    )
    quality_table.main(["state-tracking", "--grid", "models", "--out", str(out)])
    printed = capsys.readouterr().out
    for row in (
        "| feedback | 2 | 0 | 0.25 |",
        "| transformer-xl | 2 | 0 | 0.25 |",
        "| transformer-xl | 4 | 0 | 0.25 |",
    ):
        assert row in printed
    assert "model" not in printed.split("Measured")[0].split("All rows")[1]


def test_the_table_has_medians_and_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "state.json"
    environment = {"cpu": "a processor", "threads": 1, "torch": "2.11"}
    runs = []
    for clip, seed, solved in ((0.1, 0, 300), (0.1, 1, 500), (0.1, 2, 400), (1.0, 0, None), (1.0, 1, 200)):
        settings = state_tracking.resolve({"clip": clip, "lr": 1e-3})
        curve = [{"update": 100, "seconds": 9.5, "loss": 1.5 + seed}]
        figures = {"update_solved": solved, "loss": 0.25}
        runs.append(
            {"settings": settings, "seed": seed, "environment": environment, "figures": figures, "curve": curve}
        )
    write_runs(out, runs)
    quality_table.main(["state-tracking", "--grid", "clip", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "B 64" in printed
    assert "a processor, threads: 1, torch 2.11" in printed
    assert printed.splitlines()[-5:-1] == [
        "| clip | lr | seeds | update_solved | loss |",
        "| --- | --- | --- | --- | --- |",
        "| 0.1 | 0.001 | 0, 1, 2 | 400 (300 to 500) | 0.25 |",
        "| 1.0 | 0.001 | 0, 1 | 200 in 1 of 2 | 0.25 |",
    ]
    quality_table.main(["state-tracking", "--out", str(out), "--curve", "loss", "--seeds", "0", "1"])
    assert "| 0.1 | 0.001 | 0, 1 | 2 (1.5 to 2.5) at 9.5 s |" in capsys.readouterr().out


def test_processes_add_to_one_file(tmp_path: Path) -> None:
    out = tmp_path / "runs.json"
    code = """if True:
        from pathlib import Path
        import sys
        from runs import add_run
        for seed in sys.argv[2:]:
            add_run(Path(sys.argv[1]), {"settings": {}, "seed": int(seed)})
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    seeds = [[str(seed) for seed in range(start, 20, 2)] for start in (0, 1)]
    writers = [subprocess.Popen([sys.executable, "-c", code, out, *half], env=environment) for half in seeds]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [run["seed"] for run in read_runs(out)] == list(range(20))


def test_numbers_that_json_lacks_become_null() -> None:
    assert only_finite({"a": [1.0, float("nan")], "b": float("inf")}) == {"a": [1.0, None], "b": None}


def test_gradient_norms_leave_out_what_is_not_finite() -> None:
    found = gradient_norms([float("nan"), *map(float, range(1, 201))])
    assert found == {"grad_norm_median": 100.5, "grad_norm_99": 198.0, "grad_norm_max": 200.0}
    assert gradient_norms([])["grad_norm_max"] is None
