import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from feedback_transformer_pytorch import FeedbackConfig, InputError
from feedback_transformer_pytorch.hf import FeedbackTransformerConfig

FIELDS = {"num_tokens": 11, "dim": 8, "depth": 2, "mem_len": 6, "heads": 4, "kv_heads": 2, "dim_head": 4}


def test_names_of_transformers_are_names_of_ours() -> None:
    config = FeedbackTransformerConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, mem_len=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=4,
    )  # fmt: skip
    assert config.feedback_config() == FeedbackConfig(**FIELDS)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (11, 8, 2)
    config.vocab_size = 12
    assert config.feedback_config().num_tokens == 12


def test_a_round_trip_keeps_every_field(tmp_path: Path) -> None:
    fields = {**FIELDS, "position": "learned", "norm": "post", "stored": 1, "carry": "state", "attn_dropout": 0.1}
    config = FeedbackTransformerConfig(**fields, tie_word_embeddings=True, pad_token_id=3)
    config.save_pretrained(tmp_path)
    for again in (FeedbackTransformerConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert again.feedback_config() == FeedbackConfig(**fields)
        assert again.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        assert (again.tie_word_embeddings, again.pad_token_id) == (True, 3)


def test_older_names_of_ours_are_taken() -> None:
    assert FeedbackTransformerConfig(keep_last_hidden=True, norm_memory=True).stored == "top"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mem_lenn": 3}, "'mem_lenn' is not a hyperparameter of the model; did you mean 'mem_len'?"),
        ({"hidden_dim": 3}, "'hidden_dim' is not a hyperparameter"),
        ({"mem_len": 0}, "mem_len is 0"),
        ({"dim": 8, "hidden_size": 8}, "dim is given as dim and as hidden_size"),
        ({"context_dim": 8}, "context_dim is 8"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", "\\?")):
        FeedbackTransformerConfig(**fields)


def test_an_unknown_name_in_a_file_is_refused(tmp_path: Path) -> None:
    FeedbackTransformerConfig(**FIELDS).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": 1e4}))
    with pytest.raises(InputError, match="rope_theta"):
        FeedbackTransformerConfig.from_pretrained(tmp_path)
