import dataclasses
from typing import Any

import pytest

from feedback_transformer_pytorch import FeedbackConfig, FeedbackDecoder, FeedbackTransformer, InputError

SMALL: dict[str, Any] = {"num_tokens": 7, "dim": 8, "depth": 1, "mem_len": 2, "heads": 4, "dim_head": 2}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mem_len", 0, "mem_len is 0; it must be a whole number of at least 1"),
        ("dim", 8.0, "dim is 8.0; it must be a whole number"),
        ("depth", True, "depth is True"),
        ("num_tokens", 0, "num_tokens is 0"),
        ("kv_heads", 3, "kv_heads is 3; it must be a divisor of heads=4"),
        ("attn_dropout", 1.2, "attn_dropout is 1.2; it must be a number from 0 up to but not including 1"),
        ("ff_dropout", "0.1", "ff_dropout is '0.1'"),
        ("position", "rotary", "position is 'rotary'; it must be 't5' or 'relative' or 'learned' or 'legacy'"),
        ("keep_last_hidden", 1, "keep_last_hidden is 1; it must be True or False"),
        ("norm_memory", 0, "norm_memory is 0; it must be True or False"),
        ("mem_length", 3, "'mem_length' is not a hyperparameter of the model; did you mean 'mem_len'"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(field: str, value: Any, message: str) -> None:
    wrong = {**SMALL, field: value}
    with pytest.raises(InputError) as raised:
        FeedbackTransformer(**wrong)
    assert message in str(raised.value)
    with pytest.raises(InputError, match=field):
        FeedbackConfig.from_dict(wrong)
    if field != "num_tokens":
        with pytest.raises(InputError, match=field):
            FeedbackDecoder(**{name: v for name, v in wrong.items() if name != "num_tokens"})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match="missing depth, mem_len"):
        FeedbackConfig.from_dict({"dim": 8})


def test_to_dict_and_back() -> None:
    config = FeedbackConfig(**SMALL, kv_heads=2, position="legacy", attn_dropout=0.25)
    assert FeedbackConfig.from_dict(config.to_dict()) == config
    assert set(config.to_dict()) == {f.name for f in dataclasses.fields(config)}


def test_kv_heads_are_heads_by_default() -> None:
    assert FeedbackConfig(**SMALL).kv_dim == 4 * 2
    assert FeedbackConfig(**SMALL, kv_heads=1).kv_dim == 2
