"""Builds the model that `--model` names."""

from __future__ import annotations

import dataclasses

import torch

from ...baselines import ParallelTransformer, TransformerXL
from ...config import FeedbackConfig
from ...model import FeedbackTransformer
from ..options import TrainOptions

LanguageModel = FeedbackTransformer | ParallelTransformer | TransformerXL


def build_model(options: TrainOptions, num_tokens: int, mem_len: int | None = None) -> LanguageModel:
    """A model initialised from torch's global random state.

    Every architecture has the interface that training needs: `model(x, memory, return_memory=True)`, with x (B, T)
    tokens, returns logits (B, T, V) and the memory for the next call. The memory has `detach()`.

    Args:
        mem_len: memory slots M, if they differ from the options.

    Raises:
        InputError: a hyperparameter is out of range.
    """
    chosen = options.to_dict() | {
        "num_tokens": num_tokens,
        "mem_len": mem_len or options.mem_len,
        "attn_dropout": options.dropout,
        "ff_dropout": options.dropout,
    }
    config = FeedbackConfig(**{f.name: chosen[f.name] for f in dataclasses.fields(FeedbackConfig) if f.name in chosen})
    if options.model == "parallel":
        return ParallelTransformer.from_config(config)
    if options.model == "transformer-xl":
        return TransformerXL.from_config(config)
    return FeedbackTransformer.from_config(config, implementation=options.implementation, recompute=options.recompute)


def default_device() -> torch.device:
    """Where a trained model runs: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
