"""Builds the model that `--model` names."""

from __future__ import annotations

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
        InputError: a hyper-parameter is out of range.
    """
    config = FeedbackConfig(
        num_tokens=num_tokens,
        dim=options.dim,
        depth=options.depth,
        heads=options.heads,
        dim_head=options.dim_head,
        kv_heads=options.kv_heads,
        seq_len=options.seq_len,
        mem_len=mem_len or options.mem_len,
        position=options.position,
        norm_memory=options.norm_memory,
        attn_dropout=options.dropout,
        ff_dropout=options.dropout,
    )
    if options.model == "parallel":
        return ParallelTransformer.from_config(config)
    if options.model == "transformer-xl":
        return TransformerXL.from_config(config)
    return FeedbackTransformer.from_config(config, implementation=options.implementation, recompute=options.recompute)
