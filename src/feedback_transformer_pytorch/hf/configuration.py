"""The configuration: the hyperparameters of `FeedbackConfig`, also by the names that `transformers` gives them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ..config import FeedbackConfig, hyperparameters_of, reject_unknown
from ..errors import InputError
from . import remote_code

# What a configuration without arguments has where `FeedbackConfig` has no default.
_DEFAULTS: Mapping[str, int] = {"num_tokens": 256, "dim": 256, "depth": 4, "mem_len": 256}
# What `PreTrainedConfig` takes besides its fields, and what it writes.
_OF_TRANSFORMERS = {
    *("name_or_path", "_name_or_path", "_commit_hash", "model_type", "auto_map", "torch_dtype", "num_labels"),
    *("output_attentions", "attn_implementation", "experts_implementation"),
}


class FeedbackTransformerConfig(PreTrainedConfig):
    """Hyperparameters of a Feedback Transformer in `transformers`.

    Args:
        fields: those of `FeedbackConfig`; four have defaults here: num_tokens 256, dim 256, depth 4, mem_len 256.
            `vocab_size`, `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads` and
            `head_dim` are other names of `num_tokens`, `dim`, `depth`, `heads`, `kv_heads` and `dim_head`. Besides them
            what every `PreTrainedConfig` takes, and the attributes below.

    Attributes:
        use_cache: whether a call in evaluation mode returns a cache.
        tie_word_embeddings: whether the last projection's weight is that of the embedding.
        pad_token_id, bos_token_id, eos_token_id: special tokens, if there are any.

    Raises:
        InputError: a field is unknown or out of range, or given by two names; or the model would have a context.
    """

    model_type = "feedback_transformer"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "vocab_size": "num_tokens",
        "hidden_size": "dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "head_dim": "dim_head",
    }

    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __init__(self, **fields: Any) -> None:
        given = self._by_our_names(fields)
        here = {field.name: field.default for field in dataclasses.fields(type(self))}
        of_transformers = {f.name for f in dataclasses.fields(PreTrainedConfig)} | _OF_TRANSFORMERS
        extra = {name: given.pop(name) for name in list(given) if name in of_transformers}
        added = {name: given.pop(name, here[name]) for name in here if name not in of_transformers}
        reject_unknown(set(given) - set(hyperparameters_of(FeedbackConfig)), FeedbackConfig)
        config = FeedbackConfig.from_dict({**_DEFAULTS, **given})
        if config.context_dim is not None:
            raise InputError(
                f"context_dim is {config.context_dim}, and a language model of transformers has no context; leave it "
                "out, or use FeedbackTransformer"
            )
        for name, value in (config.to_dict() | added).items():
            setattr(self, name, value)
        extra.pop("auto_map", None)  # written anew
        super().__init__(**extra)

    def _by_our_names(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name, value in fields.items():
            ours = self.attribute_map.get(name, name)
            if ours in given:
                other = next(key for key, meant in self.attribute_map.items() if meant == ours)
                raise InputError(f"{ours} is given as {ours} and as {other}; give one of the two")
            given[ours] = value
        return given

    def feedback_config(self) -> FeedbackConfig:
        """The hyperparameters that the model is built from.

        Raises:
            InputError: one was set to what is not allowed.
        """
        names = [field.name for field in dataclasses.fields(FeedbackConfig)]
        return FeedbackConfig.from_dict({name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """All fields, and where `transformers` finds the classes, as plain values."""
        return {**super().to_dict(), "auto_map": remote_code.auto_map()}

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes config.json, and the file by which the classes are found without importing this package first."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / remote_code.FILE).write_text(remote_code.SOURCE)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: a registered class would copy its sources into every saved model, which has a file for that."""
