import dataclasses

import pytest
import yaml

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.options import (
    GenerateOptions,
    TokenizerOptions,
    TrainOptions,
    preset_file,
    preset_names,
)


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
        ("first_block_len", 128, "--first-block-len is 128; it must be below --block-len 128"),
        ("first_block_len", 64, "--curriculum-updates is 0; "),
        ("checkpoint_minutes", 0, "--checkpoint-minutes is 0; it must be above 0"),
        ("keep", 0, "--keep is 0; it must be at least 1"),
        ("curriculum_updates", 5, "--curriculum-updates is 5 without --first-block-len; give both"),
        ("compile", True, "--compile is given with --model feedback"),
        ("seq_len", 3, "--block-len is 128; it must be a multiple of --seq-len 3"),
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
    with pytest.raises(InputError, match="'max_update' is not an option; the options are files, out, "):
        TrainOptions.from_dict({"out": "run", "max_update": 3})
    with pytest.raises(InputError, match="--out is missing"):
        TrainOptions.from_dict({})


def test_options_survive_yaml(options: TrainOptions) -> None:
    assert TrainOptions.from_dict(yaml.safe_load(yaml.safe_dump(options.to_dict()))) == options


def test_every_option_has_a_line_of_help() -> None:
    assert all(about.help for about in TrainOptions.infos().values())
    assert set(TrainOptions.infos()) == {field.name for field in dataclasses.fields(TrainOptions)}


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid(name: str) -> None:
    TrainOptions.from_dict({"out": "run", **yaml.safe_load(preset_file(name).read_bytes())})


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match="--preset is 'huge'; it must be algorithmic-3 or algorithmic-5 or demo or"):
        preset_file("huge")
