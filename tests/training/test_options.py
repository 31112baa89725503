import dataclasses
from collections.abc import Callable

import pytest
import torch
import yaml

from feedback_transformer_pytorch.config import FeedbackConfig
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.datasets.labelled import labelled_dataset
from feedback_transformer_pytorch.training.earlier import EARLIER, completed, is_complete, renamed
from feedback_transformer_pytorch.training.models.architectures import build_model
from feedback_transformer_pytorch.training.options import (
    GenerateOptions,
    TokenizerOptions,
    TrainOptions,
    preset_file,
    preset_names,
)
from feedback_transformer_pytorch.training.processes import Processes
from feedback_transformer_pytorch.training.updates.trainer import Trainer


def test_schedules_longer_than_the_run_are_named() -> None:
    def lines(**options: int) -> list[str]:
        return TrainOptions(out="RUN", first_block_len=32, **options).cut_short  # type: ignore[arg-type]

    assert lines(curriculum_updates=9, warmup_updates=10, max_updates=10) == []
    assert lines(curriculum_updates=10, warmup_updates=11, max_updates=10) == [
        "the learning rate does not reach --lr 0.002: --warmup-updates 11 is above --max-updates 10",
        "blocks do not reach --block-len 64: --curriculum-updates 10 is not below --max-updates 10",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_updates", 0, "--max-updates is 0; it must be at least 1"),
        ("max_updates", 2.5, "--max-updates is 2.5; it must be a whole number"),
        ("max_updates", True, "--max-updates is True; it must be a whole number"),
        ("lr", 0.0, "--lr is 0.0; it must be above 0"),
        ("lr", float("nan"), "--lr is nan; it must be above 0"),
        ("lr", "fast", "--lr is 'fast'; it must be a number"),
        ("dropout", 1.0, "--dropout is 1.0; it must be at least 0 and below 1"),
        ("kv_heads", 3, "--kv-heads is 3; it must divide --heads 4"),
        ("kv_heads", "many", "--kv-heads is 'many'; it must be a whole number or null"),
        ("precision", "fp16", "--precision is 'fp16'; it must be 'fp32' or 'bf16'"),
        ("files", "a.txt", "--files is 'a.txt'; it must be a list of texts"),
        ("recompute", 1, "--recompute is 1; it must be true or false"),
        ("trackers", ["paper"], "--trackers has 'paper'; it must be one of tensorboard, wandb, trackio"),
        ("accumulate", 5, "--accumulate is 5; it must divide --batch-size 32"),
        ("first_block_len", 64, "--first-block-len is 64; it must be below --block-len 64"),
        ("first_block_len", 32, "--curriculum-updates is 0; "),
        ("checkpoint_minutes", 0, "--checkpoint-minutes is 0; it must be above 0"),
        ("keep", 0, "--keep is 0; it must be at least 1"),
        ("curriculum_updates", 5, "--curriculum-updates is 5 without --first-block-len; give both"),
        ("compile", True, "--compile is given with --model feedback"),
        ("position", "legacy", "--position is 'legacy'; it must be 'relative' or 't5' or 'learned'"),
        ("carry", "normed_state", "--carry is 'normed_state'; it must be 'keys' or 'state'"),
        ("memory_norm", True, "--memory-norm is True; it must be 'none' or 'plain' or 'layer'"),
        ("stored", "bottom", "--stored is 'bottom'; it must be 'mix' or 'top' or a whole number"),
        ("stored", True, "--stored is True; it must be 'mix' or 'top' or a whole number"),
        ("stored", 5, "--stored is 5; it must be mix, top, or a layer from 0 to --depth 4"),
        ("stored", -1, "--stored is -1; it must be mix, top, or a layer from 0 to --depth 4"),
        ("feedforward_dim", 0, "--feedforward-dim is 0; it must be at least 1"),
        ("span_init", 1.5, "--span-init is 1.5; it must be at least 0 and at most 1"),
        ("span_loss", -1.0, "--span-loss is -1.0; it must be at least 0"),
        ("seq_len", 3, "--block-len is 64; it must be a multiple of --seq-len 3"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError) as raised:
        TrainOptions(out="run", **{name: value})
    assert message in str(raised.value)


def test_short_blocks_have_whole_segments_too() -> None:
    with pytest.raises(InputError, match="--first-block-len is 6; it must be a multiple of --seq-len 4"):
        TrainOptions(out="run", seq_len=4, first_block_len=6, curriculum_updates=100)


def test_a_vocabulary_has_all_bytes() -> None:
    with pytest.raises(InputError, match="--vocab-size is 255; it must be at least 256"):
        TokenizerOptions(action="train", files=["text.txt"], vocab_size=255)


def test_a_mistake_in_generation_is_named() -> None:
    with pytest.raises(InputError, match="--top-p is 1.5; it must be above 0 and at most 1"):
        GenerateOptions(run="run", top_p=1.5)
    with pytest.raises(InputError, match="--prompt is empty"):
        GenerateOptions(run="run", prompt="")


def test_a_dict_with_an_unknown_or_without_a_required_option_is_refused() -> None:
    with pytest.raises(InputError, match="'max_update' is not an option; did you mean 'max_updates'?"):
        TrainOptions.from_dict({"out": "run", "max_update": 3})
    with pytest.raises(InputError, match="'xyz' is not an option; known are files, out, "):
        TrainOptions.from_dict({"out": "run", "xyz": 3})
    with pytest.raises(InputError, match="--out is missing"):
        TrainOptions.from_dict({})


def test_options_survive_yaml(options: TrainOptions) -> None:
    assert TrainOptions.from_dict(yaml.safe_load(yaml.safe_dump(options.to_dict()))) == options


def test_every_option_has_a_line_of_help() -> None:
    assert all(about.help for about in TrainOptions.infos().values())
    assert set(TrainOptions.infos()) == {field.name for field in dataclasses.fields(TrainOptions)}


@pytest.mark.parametrize("name", preset_names())
def test_presets_build_a_model(name: str) -> None:
    with torch.device("meta"):
        build_model(preset(name), 256)


def preset(name: str) -> TrainOptions:
    return TrainOptions.from_dict({"out": "run", **yaml.safe_load(preset_file(name).read_bytes())})


@pytest.mark.parametrize("name", [name for name in preset_names() if name != "enwik8"])
def test_presets_take_an_update(
    options: TrainOptions, trainer_of: Callable[[TrainOptions], Trainer], name: str
) -> None:
    text = dataclasses.replace(preset(name), task=None, files=options.files, batch_size=2, accumulate=1)
    step = trainer_of(text).step()
    assert not step.skipped
    assert 4 < step.loss < 8


@pytest.mark.parametrize("name", ["algorithmic-3", "algorithmic-5"])
def test_the_papers_programs_are_learnt_by_their_labels(name: str, processes: Processes) -> None:
    options = dataclasses.replace(preset(name), batch_size=4)
    assert options.task == name
    dataset = labelled_dataset(options, None, processes)
    model = build_model(options, dataset.tokens.num_tokens)
    step = Trainer(options, model, dataset.blocks, dataset.objective, processes).step()
    assert 1 < step.loss < 5


def test_the_large_preset_is_the_papers_model() -> None:
    options = preset("enwik8")
    with torch.device("meta"):
        model = build_model(options, 205)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(77e6, rel=0.01)
    assert model.config.adaptive_span


def test_layer_norms_of_the_memory_need_norms_before() -> None:
    with pytest.raises(InputError, match="memory_norm='layer' goes with norm='pre'"):
        build_model(TrainOptions(out="run", norm="post", memory_norm="layer"), 256)


def test_options_of_today_keep_their_names() -> None:
    values = {"dim": 3, "memory_norm": "layer"}
    assert renamed(values) == values


@pytest.mark.parametrize(("flag", "memory_norm"), [(True, "plain"), (False, "none")])
def test_norm_memory_is_memory_norm_now(flag: bool, memory_norm: str) -> None:
    assert renamed({"dim": 3, "norm_memory": flag}) == {"dim": 3, "memory_norm": memory_norm}
    assert renamed({"norm_memory": flag, "memory_norm": memory_norm}) == {"memory_norm": memory_norm}
    with pytest.raises(InputError, match=f"--norm-memory is {flag} and --memory-norm 'layer'; .*: give one of the two"):
        renamed({"norm_memory": flag, "memory_norm": "layer"})


def test_a_wrong_norm_memory_is_named() -> None:
    with pytest.raises(InputError, match="--norm-memory is 'yes'; it must be true or false"):
        renamed({"norm_memory": "yes"})


def test_what_did_not_exist_was_the_default_of_the_configuration() -> None:
    values = TrainOptions(out="run").to_dict()
    old = {name: value for name, value in values.items() if name not in EARLIER} | {"norm_memory": True}
    assert is_complete(old)
    assert not is_complete({name: value for name, value in old.items() if name != "lr"})
    today = TrainOptions.from_dict(completed(old))
    assert (today.position, today.memory_norm) == ("t5", "plain")
    config = build_model(today, 7).config
    given = {name: values[name] for name in ("dim", "depth", "heads", "dim_head", "seq_len", "mem_len")}
    assert config == FeedbackConfig(num_tokens=7, norm_memory=True, attn_dropout=0.1, ff_dropout=0.1, **given)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match="--preset is 'huge'; it must be algorithmic-3 or algorithmic-5 or demo or"):
        preset_file("huge")
