"""A model that starts from the weights of another.

A parallel Transformer trains many times faster than a feedback model, and the paper (Fan et al. 2020, arXiv 2002.09402)
starts a feedback model from one. L layers, D model width, G*E key/value width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import InputError
from ...model import FeedbackTransformer
from .architectures import LanguageModel

EMBEDDING_SHARE = 0.8  # of the memory's mix, where a feedback model starts from a baseline

# What a feedback model calls a parameter of a baseline. Of the baseline's key/value projections it takes the first.
_FEEDBACK_NAMES = {
    r"layers\.0\.to_kv\.weight": "decoder.stack.to_kv.weight",
    r"layers\.(\d+)\.(norm|to_q|to_out)\.(\w+)": r"decoder.stack.layers.\1.attention.\2.\3",
    r"layers\.(\d+)\.feedforward\.(.+)": r"decoder.stack.layers.\1.feedforward.\2",
    r"position\.(.+)": r"decoder.stack.position.\1",
    r"norm\.(\w+)": r"decoder.norm.\1",
    r"(token_emb|to_logits)\.(\w+)": r"\1.\2",
}


def start_from(model: LanguageModel, source: LanguageModel) -> None:
    """Gives `model` the weights of `source`, in place.

    Models of one architecture, and the two baselines among each other, share all weights. A feedback model that starts
    from a baseline takes what both have. Its one key/value projection (2*G*E, D) is the baseline's of the first layer,
    and its layer weights (L+1,) mix mostly what that layer saw, the embedding: so the first layer begins with nearly
    the keys and values it knows, and the others learn to read them (LOG.md compares this with other choices).

    Raises:
        InputError: a tensor is missing on one side or differs in shape; `model` is as it was.
    """
    own, given = model.state_dict(), source.state_dict()
    if isinstance(model, FeedbackTransformer) and not isinstance(source, FeedbackTransformer):
        given = _as_feedback(given, model.config.depth)
    for name in {**own, **given}:
        here, there = (tuple(state[name].shape) if name in state else "missing" for state in (own, given))
        if here != there:
            raise InputError(
                f"a {type(model).__name__} cannot start from this {type(source).__name__}: {name} is {here} here and "
                f"{there} in the source; give both the same sizes and --position; a baseline starts from baselines only"
            )
    model.load_state_dict(given)


def _as_feedback(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The weights of a baseline as those of a feedback model of `depth` layers."""
    layer_weight = torch.zeros(depth + 1)
    layer_weight[0] = math.log(depth * EMBEDDING_SHARE / (1 - EMBEDDING_SHARE))
    renamed = {
        re.sub(pattern, replacement, name): tensor
        for name, tensor in state.items()
        for pattern, replacement in _FEEDBACK_NAMES.items()
        if re.fullmatch(pattern, name)
    }
    return {**renamed, "decoder.stack.layer_weight": layer_weight}
