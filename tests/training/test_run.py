import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.architectures import build_model
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.run import Run


@pytest.fixture
def run(options: TrainOptions) -> Run:
    run = Run.create(options)
    run.save_weights(build_model(options, 256))
    return run


def test_weights_and_options_come_back(options: TrainOptions) -> None:
    run = Run.create(options)
    model = build_model(options, 256)
    run.save_weights(model)
    opened = Run.open(run.path)
    assert opened.options == options
    loaded = opened.load_model(256)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_run_may_be_moved(run: Run, tmp_path: Path) -> None:
    moved = run.path.rename(tmp_path / "elsewhere")
    assert Run.open(moved).options == dataclasses.replace(run.options, out=str(moved))


def test_metrics_come_back_line_by_line(run: Run) -> None:
    run.log({"kind": "train", "update": 1})
    run.log({"kind": "train", "update": 2})
    assert [record["update"] for record in run.metrics()] == [1, 2]


def test_a_place_that_is_taken_is_refused(run: Run, options: TrainOptions, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run already holds a run; choose another --out"):
        Run.create(options)
    with pytest.raises(InputError, match="is not empty and holds no run; choose another --out"):
        Run.create(dataclasses.replace(options, out=str(tmp_path)))
    with pytest.raises(InputError, match="is a file; choose another --out"):
        Run.create(dataclasses.replace(options, out=options.files[0]))
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        Run.create(dataclasses.replace(options, out=options.files[0] + "/run"))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no RUN: it has no config.yaml"):
        Run.open(tmp_path)
    with pytest.raises(InputError, match="is no RUN: there is no such directory"):
        Run.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "is no YAML"),
        (b"\xff\xfe\x00", "is no YAML"),
        (b"- a\n- b\n", "holds no options"),
        (b"", "holds no options"),
        (b"dim: wide\n", "--dim is 'wide'; it must be a whole number"),
        (b"width: 3\n", "'width' is no option"),
        (b"3: 4\n", "3 is no option"),
    ],
)
def test_a_damaged_config_is_named(run: Run, config: bytes, message: str) -> None:
    (run.path / "config.yaml").write_bytes(config)
    with pytest.raises(InputError, match=re.escape("config.yaml") + ".*" + re.escape(message)):
        Run.open(run.path)


def test_missing_weights_are_named(run: Run) -> None:
    run.weights.unlink()
    with pytest.raises(InputError, match="has no weights yet"):
        run.load_model(256)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_weights_are_named(run: Run, length: int) -> None:
    run.weights.write_bytes(run.weights.read_bytes()[:length])
    with pytest.raises(InputError, match=r"model.safetensors is damaged"):
        run.load_model(256)


def test_weights_of_another_model_are_named(run: Run) -> None:
    config = run.path / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "dim": 32}))
    with pytest.raises(InputError, match=r"does not match .*config.yaml: .* is \(.*\) in the weights"):
        Run.open(run.path).load_model(256)
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "dim": 16, "heads": 4}))
    with pytest.raises(InputError, match=r"does not match .*config.yaml: .* is \(.*\) in the weights"):
        Run.open(run.path).load_model(256)
