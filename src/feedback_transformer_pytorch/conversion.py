"""Checkpoints of other programs to models of this one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .errors import InputError
from .model import FeedbackTransformer

# What 0.0.11 calls a parameter, once the wrappers around attention and feed-forward (`fn.`) are taken out of its name.
_REFERENCE_NAMES = {
    r"token_emb\.weight": "token_emb.weight",
    r"pos_emb\.relative_attention_bias\.weight": "decoder.stack.position.bias.weight",
    r"layer_weight": "decoder.stack.layer_weight",
    r"shared_kv_proj\.weight": "decoder.stack.to_kv.weight",
    r"layers\.(\d+)\.0\.norm\.(\w+)": r"decoder.stack.layers.\1.attention.norm.\2",
    r"layers\.(\d+)\.0\.(to_q|to_out)\.(\w+)": r"decoder.stack.layers.\1.attention.\2.\3",
    r"layers\.(\d+)\.1\.norm\.(\w+)": r"decoder.stack.layers.\1.feedforward.norm.\2",
    r"layers\.(\d+)\.1\.net\.0\.(\w+)": r"decoder.stack.layers.\1.feedforward.to_hidden.\2",
    r"layers\.(\d+)\.1\.net\.3\.(\w+)": r"decoder.stack.layers.\1.feedforward.to_out.\2",
    r"to_logits\.0\.(\w+)": r"decoder.norm.\1",
    r"to_logits\.1\.(\w+)": r"to_logits.\1",
}


def rename_reference(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters, or their gradients, under our names instead of those of 0.0.11.

    Raises:
        InputError: a name is not one of 0.0.11.
    """
    renamed = {}
    for name, tensor in tensors.items():
        bare = name.replace("fn.", "")
        if re.fullmatch(r"layers\.\d+\.0\.to_kv\.weight", bare):
            continue  # the same tensor as shared_kv_proj
        pattern = next((p for p in _REFERENCE_NAMES if re.fullmatch(p, bare)), None)
        if pattern is None:
            raise InputError(f"{name!r} is not a parameter of feedback-transformer-pytorch 0.0.11")
        renamed[re.sub(pattern, _REFERENCE_NAMES[pattern], bare)] = tensor
    return renamed


def from_reference(
    state_dict: Mapping[str, Tensor], *, seq_len: int, mem_len: int, heads: int, keep_last_hidden: bool = False
) -> FeedbackTransformer:
    """The model of a `feedback-transformer-pytorch` 0.0.11 state dict: the same logits and memory.

    Args:
        state_dict: what 0.0.11's `FeedbackTransformer.state_dict()` gave.
        seq_len, mem_len, heads, keep_last_hidden: as that model was built; the state dict does not hold them.

    Returns:
        A model with `position="legacy"`, in the precision and on the device of the state dict.

    Raises:
        InputError: the state dict is not one of 0.0.11, or does not fit the arguments.
    """
    renamed = rename_reference(state_dict)
    try:
        num_tokens, dim = renamed["token_emb.weight"].shape
        inner = renamed["decoder.stack.to_kv.weight"].shape[0] // 2
        bias_heads = renamed["decoder.stack.position.bias.weight"].shape[1]
        depth = renamed["decoder.stack.layer_weight"].shape[0] - 1
    except KeyError as missing:
        raise InputError(f"the state dict holds no {missing}: it is not one of 0.0.11, or not all of it") from None
    if heads != bias_heads:
        raise InputError(f"heads is {heads}, but the state dict is of a model with heads={bias_heads}")
    model = FeedbackTransformer(
        num_tokens=num_tokens,
        dim=dim,
        depth=depth,
        mem_len=mem_len,
        seq_len=seq_len,
        heads=heads,
        dim_head=inner // heads,
        keep_last_hidden=keep_last_hidden,
        position="legacy",
    )
    model.to(renamed["token_emb.weight"])
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise InputError(f"the state dict is not whole: {' '.join(str(error).split())}") from None
    return model
