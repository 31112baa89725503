"""Initialises a model with the weights of another.

A parallel Transformer trains many times faster than a feedback model. Therefore the paper (Fan et al. 2020,
arXiv 2002.09402) initialises a feedback model with one. L layers, D model width, G*E key/value width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ...config import FeedbackConfig
from ...errors import InputError
from ...model import FeedbackTransformer
from .architectures import LanguageModel

EMBEDDING_SHARE = 0.8  # the embedding's weight in the memory's mix, if a feedback model starts from a baseline


def start_from(model: LanguageModel, source: LanguageModel) -> None:
    """Gives `model` the weights of `source`, in place.

    Two models of one architecture have the same parameters, and so have the two baselines. A feedback model takes from
    a baseline the parameters that both have. If it has one key/value projection (2*G*E, D) for all layers, or one norm
    before it, they become those of the baseline's first layer. Adaptive spans stay as they are. Its layer weights
    (L+1,) mix mostly the embedding, which that layer read. So the first layer starts with nearly its former keys and
    values, and the other layers learn to read them. LOG.md compares other choices.

    Raises:
        InputError: a tensor is missing in one model or differs in shape; `model` is unchanged.
    """
    own, given = model.state_dict(), source.state_dict()
    if isinstance(model, FeedbackTransformer) and not isinstance(source, FeedbackTransformer):
        given = _as_feedback(given, model)
    for name in {**own, **given}:
        here, there = (tuple(state[name].shape) if name in state else "missing" for state in (own, given))
        if here != there:
            raise InputError(
                f"a {type(model).__name__} cannot start from this {type(source).__name__}: {name} is {here} in the new "
                f"model and {there} in the source; give both the same sizes, --position and other options of the "
                "model, and start a baseline from a baseline"
            )
    model.load_state_dict(given)


def _as_feedback(state: Mapping[str, Tensor], model: FeedbackTransformer) -> dict[str, Tensor]:
    """The weights of a baseline under the names of a feedback model, with what only the feedback model has."""
    depth = model.config.depth
    layer_weight = torch.zeros(depth + 1)
    layer_weight[0] = math.log(depth * EMBEDDING_SHARE / (1 - EMBEDDING_SHARE))
    renamed = {
        re.sub(pattern, replacement, name): tensor
        for name, tensor in state.items()
        for pattern, replacement in _feedback_names(model.config).items()
        if re.fullmatch(pattern, name)
    }
    spans = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("span.ratio")}
    return {**renamed, **spans, "decoder.stack.layer_weight": layer_weight}


def _feedback_names(config: FeedbackConfig) -> dict[str, str]:
    """Names of a baseline's parameters in a feedback model. What the model shares is that of the first layer."""
    parts = {"to_q": False, "to_out": False, "to_kv": config.kv == "shared", "norm": config.shares_norm}
    of_layers = "|".join(part for part, is_shared in parts.items() if not is_shared)
    shared = "|".join(part for part, is_shared in parts.items() if is_shared)
    return {
        rf"layers\.(\d+)\.({of_layers})\.(\w+)": r"decoder.stack.layers.\1.attention.\2.\3",
        rf"layers\.0\.({shared})\.(\w+)": r"decoder.stack.\1.\2",
        r"layers\.(\d+)\.feedforward\.(.+)": r"decoder.stack.layers.\1.feedforward.\2",
        r"position\.(.+)": r"decoder.stack.position.\1",
        r"norm\.(\w+)": r"decoder.norm.\1",
        r"(token_emb|to_logits)\.(\w+)": r"\1.\2",
    }
