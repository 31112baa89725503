"""Checkpoints of other programs to models of this one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .baselines import AuthorsTransformer
from .checks import check_kind
from .config import FeedbackConfig
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
            raise InputError(
                f"{name!r} is not a parameter of feedback-transformer-pytorch 0.0.11; if a program put a prefix before "
                "all names (such as 'module.'), take it off"
            )
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
    _check_state_dict(state_dict)
    if "decoder.stack.layer_weight" in state_dict:
        raise InputError(
            "the state dict is of this package's own model, not of 0.0.11; build the model and load it with "
            "model.load_state_dict(state_dict)"
        )
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


def _check_state_dict(given: Mapping[str, Any]) -> None:
    """Raises InputError unless it is a mapping of names to tensors."""
    check_kind(
        "state_dict", given, Mapping, "a mapping of names to tensors, as torch.load(..., weights_only=True) gives"
    )
    for name, value in given.items():
        if isinstance(value, Mapping):
            raise InputError(
                f"the state dict holds another dict, {name!r}; give the one with the parameters, such as "
                f"checkpoint[{name!r}]"
            )
        check_kind(f"state_dict[{name!r}]", value, Tensor, "a tensor")


# What the paper authors' code calls a parameter that only changes its name.
_OFFICIAL_NAMES = {
    r"in_emb\.weight": "token_emb.weight",
    r"layers\.(\d+)\.norm1\.(\w+)": r"decoder.stack.layers.\1.attention.norm.\2",
    r"layers\.(\d+)\.attn\.proj_query\.weight": r"decoder.stack.layers.\1.attention.to_q.weight",
    r"layers\.(\d+)\.attn\.proj_out\.weight": r"decoder.stack.layers.\1.attention.to_out.weight",
    r"layers\.(\d+)\.norm2\.(\w+)": r"decoder.stack.layers.\1.feedforward.norm.\2",
    r"layers\.(\d+)\.ff\.fc1\.(\w+)": r"decoder.stack.layers.\1.feedforward.to_hidden.\2",
    r"layers\.(\d+)\.ff\.fc2\.(\w+)": r"decoder.stack.layers.\1.feedforward.to_out.\2",
    r"out_norm\.(\w+)": r"decoder.norm.\1",
    r"out\.out_emb\.(\w+)": r"to_logits.\1",
}
# What stands in the names of our feedback model and not in those of a baseline.
_FEEDBACK_ONLY = r"decoder\.(stack\.)?|(?<=\d\.)attention\."
# Buffers that their state dicts hold besides parameters.
_OFFICIAL_BUFFERS = r"single_memory_attn_buf|.*\.mask_template"


def rename_official(
    tensors: Mapping[str, Tensor], config: FeedbackConfig, *, feedback: bool = True
) -> dict[str, Tensor]:
    """Parameters, or their gradients, in our layout instead of that of the paper authors' code.

    Args:
        config: that of the model they are for.
        feedback: whether that is a FeedbackTransformer, or an AuthorsTransformer.

    Raises:
        InputError: a name is not one of that code, a key projection lacks its value projection, or layers that share a
            parameter have different ones.
    """
    renamed: dict[str, Tensor] = {}
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        pattern = next((p for p in _OFFICIAL_NAMES if re.fullmatch(p, name)), None)
        layer = re.match(r"layers\.(\d+)\.", name)
        if pattern is not None:
            ours = re.sub(pattern, _OFFICIAL_NAMES[pattern], name)
            if config.shares_norm and ".attention.norm." in ours:
                ours = re.sub(r"layers\.\d+\.attention\.", "", ours)
            _put(renamed, ours, name, tensor)
        elif name == "single_memory_attn_params":
            renamed["decoder.stack.layer_weight"] = tensor[0]
        elif name.endswith("attn.key_pe"):
            _put(renamed, "decoder.stack.position.vectors.weight", name, _by_distance(tensor))
        elif name.endswith("mask.size_ratio"):
            renamed[f"decoder.stack.{layer[0]}attention.span.ratio"] = tensor.flatten()  # type: ignore[index]
        elif found := re.fullmatch(r"(layers\.\d+)\.attn\.proj_(key|val)\.weight", name):
            owner = "decoder.stack" if config.kv == "shared" else f"decoder.stack.{found[1]}.attention"
            _put(pairs.setdefault(f"{owner}.to_kv.weight", {}), found[2], name, tensor)
        elif not re.fullmatch(_OFFICIAL_BUFFERS, name):
            raise InputError(f"{name!r} is not a parameter of the authors' models")
    for name, pair in pairs.items():
        if len(pair) < 2:
            raise InputError(f"the state dict is not whole: it has only one of proj_key and proj_val for {name}")
        renamed[name] = torch.cat([pair["key"], pair["val"]])
    return renamed if feedback else {re.sub(_FEEDBACK_ONLY, "", name): tensor for name, tensor in renamed.items()}


def _put(tensors: dict[str, Tensor], key: str, name: str, tensor: Tensor) -> None:
    """Adds the tensor called `name`, which is there already if layers share it.

    Raises:
        InputError: another one is there.
    """
    if not torch.equal(tensors.setdefault(key, tensor), tensor):
        raise InputError(
            f"{name!r} is not the same as in the layers before, which share it; check the hyperparameters "
            "share_proj_kv and pre_norm"
        )


def _by_distance(key_pe: Tensor) -> Tensor:
    """Their table (1, E, M), whose last column is the newest slot, as rows of the distances 0 to M."""
    rows = key_pe[0].t().flip(0)
    return torch.cat([torch.zeros_like(rows[:1]), rows])


def from_official(
    state_dict: Mapping[str, Tensor], hyperparameters: Mapping[str, object]
) -> FeedbackTransformer | AuthorsTransformer:
    """The model of a state dict of the paper authors' code (facebookresearch/transformer-sequential): the same log
    probabilities and carried memory.

    Args:
        state_dict: that of their feedback model, or of their Transformer; the prefix `module.`, which their program
            puts before all names, may be there.
        hyperparameters: their command line's, by name, as values or as strings: `vars(args)` of their program.

    Returns:
        A FeedbackTransformer if the hyperparameter `feedback` is "True", otherwise an AuthorsTransformer; in the
        precision and on the device of the state dict.

    Raises:
        InputError: the state dict is not one of these models, or does not fit the hyperparameters.
    """
    _check_state_dict(state_dict)
    check_kind("hyperparameters", hyperparameters, Mapping, "a mapping of their command line's names to values")
    tensors = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    given = {name: str(value) for name, value in hyperparameters.items()}
    if "in_emb.weight" in tensors:
        given = {"vocab_sz": str(len(tensors["in_emb.weight"])), **given}
    config, feedback = official_config(given), given["feedback"] == "True"
    model = (FeedbackTransformer if feedback else AuthorsTransformer).from_config(config)
    renamed = rename_official(tensors, config, feedback=feedback)
    try:
        model.to(renamed["token_emb.weight"]).load_state_dict(renamed)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"the state dict is not whole: {' '.join(str(error).split())}") from None
    return model


def official_config(hyperparameters: Mapping[str, str]) -> FeedbackConfig:
    """Our configuration of a model of the paper authors' code.

    Raises:
        InputError: a hyperparameter is missing, or asks for what our models do not have.
    """
    given = hyperparameters
    unsupported = ["expire_span", "adapt_span_layer", "adapt_span_cache"]
    if given.get("feedback") == "False":
        unsupported.append("adapt_span")
    for name in unsupported:
        if given.get(name, "False") != "False":
            raise InputError(f"{name} is {given[name]}; only models without it can be loaded")
    try:
        pre, feedback = given["pre_norm"] == "True", given["feedback"] == "True"
        shared = feedback and given["share_proj_kv"] == "True"  # their Transformer ignores it
        config = {
            "num_tokens": int(given["vocab_sz"]),
            "dim": int(given["hid_sz"]),
            "depth": int(given["nlayers"]),
            "mem_len": int(given["attn_lim"]),
            "heads": int(given["nheads"]),
            "dim_head": int(given["head_dim"]) or int(given["hid_sz"]) // int(given["nheads"]),  # as their program
            "feedforward_dim": int(given["inner_hid_sz"]),
            "attn_dropout": float(given["dropout"]),
            "ff_dropout": float(given["dropout"]),
            "adaptive_span": given["adapt_span"] == "True",
        }
        if config["adaptive_span"]:
            config["span_ramp"] = float(given["adapt_span_len"])
            config["span_init"] = float(given["adapt_span_init"])
            config["span_trim"] = int(given["adapt_span_trim_step"])
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"the authors' hyperparameters lack one, or have one that is no number: {error}") from None
    return FeedbackConfig.from_dict(
        config
        | {
            "seq_len": 1,
            "position": "learned",
            "kv": "shared" if shared else "per_layer",
            "norm": "pre" if pre else "post",
            "memory_norm": "layer" if pre else "none",
            "carry": "normed_state" if pre else "state",
            "feedforward": "relu",
            "output_bias": False,
            "memory_start": "zeros",
            "initialisation": "authors" if pre else "torch",
        }
    )
