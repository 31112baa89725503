import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save

from feedback_transformer_pytorch.data import ByteTokenizer, train_bpe
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.earlier import EARLIER
from feedback_transformer_pytorch.training.models.architectures import build_model
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving.lock import LOCK
from feedback_transformer_pytorch.training.saving.run import Run, find
from variants import VARIANTS


@pytest.fixture
def run(options: TrainOptions) -> Run:
    run = Run.create(options, ByteTokenizer())
    run.save_weights(build_model(options, 256).state_dict())
    return run


def test_weights_and_options_come_back(options: TrainOptions) -> None:
    run = Run.create(options, ByteTokenizer())
    model = build_model(options, 256)
    run.save_weights(model.state_dict())
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


def test_metrics_are_cut_where_the_checkpoint_was(run: Run) -> None:
    run.log({"kind": "train", "update": 1})
    so_far = run.metrics_file.so_far()
    run.log({"kind": "train", "update": 2})
    run.metrics_file.truncate(so_far, 1)
    assert [record["update"] for record in run.metrics()] == [1]


def test_a_validation_that_was_made_up_for_stays(run: Run) -> None:
    run.log({"kind": "train", "update": 4})
    so_far = run.metrics_file.so_far()
    run.log({"kind": "validation", "update": 4, "bits_per_byte": 2.0})
    run.log({"kind": "train", "update": 5})
    run.metrics_file.truncate(so_far, 4)
    assert [(record["kind"], record["update"]) for record in run.metrics()] == [("train", 4), ("validation", 4)]
    assert run.validated() == {4: 2.0}


def test_metrics_that_are_not_as_they_were_are_named(run: Run) -> None:
    run.log({"kind": "train", "update": 1})
    so_far = run.metrics_file.so_far()
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(
        InputError, match="metrics.jsonl is damaged: its first 31 bytes differ from those at the checkpoint"
    ):
        run.metrics_file.truncate(so_far, 1)


def test_before_anything_is_logged_there_are_no_metrics(run: Run) -> None:
    run.metrics_file.truncate(run.metrics_file.so_far(), 0)
    assert not run.start_over(run.options, run.tokenizer())
    assert run.metrics() == []


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b"3", b"\xff"])
def test_a_damaged_line_of_metrics_is_named(run: Run, line: bytes) -> None:
    (run.path / "metrics.jsonl").write_bytes(b'{"kind": "xz"}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2 is damaged: .*; resume the run, which repairs the"):
        run.metrics()


def test_the_tokenizer_of_a_run_comes_back(run: Run, options: TrainOptions, tmp_path: Path) -> None:
    assert isinstance(run.tokenizer(), ByteTokenizer)
    tokenizer = train_bpe(options.files, 300)
    other = Run.create(dataclasses.replace(options, out=str(tmp_path / "other")), tokenizer)
    assert Run.open(other.path).tokenizer().fingerprint == tokenizer.fingerprint
    other.weights.write_bytes(b"old")
    other.start_over(options, ByteTokenizer())
    assert not other.weights.exists()
    assert isinstance(other.tokenizer(), ByteTokenizer)
    other.start_over(dataclasses.replace(options, tokenizer="tokenizer.json"), tokenizer)
    assert Run.open(other.path).options.tokenizer == "tokenizer.json"
    (other.path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer.json is missing; restore it from a copy"):
        Run.open(other.path).tokenizer()
    (other.path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer.json': the content is not a tokenizer.json"):
        other.tokenizer()


def test_a_run_with_the_same_options_goes_on(run: Run, options: TrainOptions) -> None:
    found = find(dataclasses.replace(options, resume=True, files=["elsewhere.txt"], keep=5, checkpoint_every=3))
    assert (found.path, found.options) == (run.path, options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, "with --lr 0.01, not 0.5; choose another --out, or give --resume and no other options"),
        ({"seed": 3}, "with --seed 0, not 3"),
        ({"kv_heads": 1}, "with --kv-heads None, not 1"),
        ({"max_updates": 7, "eval_every": 3}, "with --max-updates 6, not 7"),
    ],
)
def test_a_run_with_other_options_does_not(
    run: Run, options: TrainOptions, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=f"run already holds a run, {message}"):
        find(dataclasses.replace(options, **changes))


def test_a_place_where_no_run_is_or_can_be_is_refused(options: TrainOptions, tmp_path: Path) -> None:
    assert find(options) is None
    with pytest.raises(InputError, match="there is no run in .*run to resume; give the directory of a run as --out"):
        find(dataclasses.replace(options, resume=True))
    with pytest.raises(InputError, match="is not empty and does not hold a run; choose another --out"):
        find(dataclasses.replace(options, out=str(tmp_path)))
    with pytest.raises(InputError, match="which is a file; give a directory"):
        find(dataclasses.replace(options, out=options.files[0]))
    with pytest.raises(InputError, match="cannot be made, because .* is a file"):
        Run.create(dataclasses.replace(options, out=options.files[0] + "/run"), ByteTokenizer())


@pytest.mark.parametrize("changes", [{"out": "caf\udce9"}, {"files": ["\udce9.txt"]}, {"heldout": ["\udce9.txt"]}])
def test_a_name_that_is_not_utf8_is_refused(options: TrainOptions, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"\\udce9.*' is not UTF-8, the encoding of config.yaml; rename"):
        find(dataclasses.replace(options, **changes))


def test_what_a_crash_left_is_in_nobodys_way(run: Run, options: TrainOptions) -> None:
    for name in ("model.safetensors.part", "checkpoints/00000003.part/state.json"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(b"half")
    run.clean()
    assert sorted(entry.name for entry in run.path.rglob("*")) == ["checkpoints", "config.yaml", "model.safetensors"]
    (run.path / "config.yaml").rename(run.path / "config.yaml.part")
    (run.path / "model.safetensors").unlink()
    (run.path / "checkpoints").rmdir()
    (run.path / LOCK).touch()
    assert find(options) is None


def test_a_run_is_not_created_over_another(run: Run, options: TrainOptions) -> None:
    with pytest.raises(InputError, match="run holds a run that another process has just created; give --resume"):
        Run.create(options, ByteTokenizer())


def test_another_memory_length_may_be_asked_for(run: Run) -> None:
    assert (run.load_model(256).config.mem_len, run.load_model(256, 5).config.mem_len) == (16, 5)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a RUN directory: it has no config.yaml"):
        Run.open(tmp_path)
    with pytest.raises(InputError, match="is not a RUN directory: there is no such directory"):
        Run.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"- a\n- b\n", "has no options"),
        (b"", "has no options"),
        (b"dim: wide\n", "--dim is 'wide'; it must be a whole number"),
        (b"width: 3\n", "'width' is not an option"),
        (b"3: 4\n", "3 is not an option"),
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


def test_a_flipped_bit_in_the_weights_is_found(run: Run) -> None:
    whole = run.weights.read_bytes()
    for place in range(0, len(whole), len(whole) // 50):
        run.weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="model.safetensors"):
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


def test_the_weights_of_a_checkpoint_can_take_the_place_of_the_runs(run: Run, options: TrainOptions) -> None:
    model = build_model(options, 256)
    run.weights.write_bytes(save(model.state_dict()))
    loaded = run.load_model(256).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_run_from_before_positions_goes_on_with_a_bias(run: Run) -> None:
    config = run.path / "config.yaml"
    values = yaml.safe_load(config.read_text())
    assert values.pop("position") == "relative"
    config.write_text(yaml.safe_dump(values))
    assert Run.open(run.path).options.position == "t5"


@pytest.mark.parametrize(("flag", "memory_norm"), [(True, "plain"), (False, "none")])
def test_a_run_from_before_the_variants_is_what_it_was(run: Run, flag: bool, memory_norm: str) -> None:
    config = run.path / "config.yaml"
    values = {name: value for name, value in yaml.safe_load(config.read_text()).items() if name not in EARLIER}
    config.write_text(yaml.safe_dump({**values, "norm_memory": flag}))
    options = Run.open(run.path).options
    assert {name: getattr(options, name) for name in EARLIER} == {**EARLIER, "memory_norm": memory_norm}


def test_a_wrong_value_by_an_older_name_is_named(run: Run) -> None:
    config = run.path / "config.yaml"
    config.write_text(config.read_text() + "norm_memory: 3\n")
    with pytest.raises(InputError, match="config.yaml: --norm-memory is 3; it must be true or false"):
        Run.open(run.path)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_saved_and_loaded(options: TrainOptions, tmp_path: Path, name: str) -> None:
    options = dataclasses.replace(options, **VARIANTS[name], out=str(tmp_path / "variant"))
    model = build_model(options, 256).eval()
    run = Run.create(options, ByteTokenizer())
    run.save_weights(model.state_dict())
    loaded = Run.open(run.path).load_model(256)
    assert loaded.config == model.config
    x = torch.arange(20)[None]
    assert torch.equal(loaded(x), model(x))


LEARNED = {"position": "learned", "adaptive_span": True, "span_init": 0.5, "span_ramp": 2, "memory_norm": "layer"}


def test_fewer_slots_are_the_newest_of_a_learned_position_and_keep_spans_in_tokens(
    options: TrainOptions, tmp_path: Path
) -> None:
    """Spans of 8 tokens, and a ramp of 2, reach no further than 10 tokens: so 12 slots are as good as 16."""
    options = dataclasses.replace(options, **LEARNED, out=str(tmp_path / "variant"))
    model = build_model(options, 256).eval()
    run = Run.create(options, ByteTokenizer())
    run.save_weights(model.state_dict())
    x = torch.arange(40)[None]
    torch.testing.assert_close(run.load_model(256, 12)(x), model(x))
    assert run.load_model(256, 4).decoder.stack.reach() == 4
    assert not torch.allclose(run.load_model(256, 4)(x), model(x))


def test_more_slots_than_a_learned_position_knows_are_refused(options: TrainOptions, tmp_path: Path) -> None:
    options = dataclasses.replace(options, **LEARNED, out=str(tmp_path / "variant"))
    run = Run.create(options, ByteTokenizer())
    run.save_weights(build_model(options, 256).state_dict())
    with pytest.raises(InputError, match="--mem-len is 17; the model was trained with .* 16: give at most 16"):
        run.load_model(256, 17)


def test_more_slots_leave_adaptive_spans_as_long_as_they_were(options: TrainOptions, tmp_path: Path) -> None:
    options = dataclasses.replace(options, **{**LEARNED, "position": "t5"}, out=str(tmp_path / "variant"))
    model = build_model(options, 256).eval()
    run = Run.create(options, ByteTokenizer())
    run.save_weights(model.state_dict())
    x = torch.arange(60)[None]
    torch.testing.assert_close(run.load_model(256, 32)(x), model(x))
