"""What the functions of the package say when they are given something of another kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import feedback_transformer_pytorch as package

MODEL: Any = package.FeedbackTransformer(num_tokens=11, dim=8, depth=1, mem_len=4, seq_len=1, heads=2, dim_head=4)
DECODER: Any = package.FeedbackDecoder(dim=8, depth=1, mem_len=4, seq_len=1, heads=2, dim_head=4)
PARAMETERS: Any = dict(DECODER.stack.named_parameters())
TOKENS, X = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, 8)
anything: Any = package  # for a type checker: the arguments below are wrong on purpose
SIZES = {"seq_len": 1, "mem_len": 4, "heads": 2}

CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "tokens as an array": (lambda: MODEL(TOKENS.numpy()), "x is of type ndarray; it must be a tensor of whole"),
    "states as a list": (lambda: DECODER([1.0]), "x is of type list; it must be a tensor (batch, time >= 1, dim=8)"),
    "states in float64": (lambda: DECODER(X.double()), "x is torch.float64, and the model's parameters are"),
    "a mask as a list": (lambda: MODEL(TOKENS, mask=[[True]]), "mask is of type list; it must be a tensor"),
    "resets as numbers": (lambda: MODEL(TOKENS, reset=TOKENS), "reset is torch.int64 (2, 3); it must be torch.bool"),
    "a mask elsewhere": (
        lambda: MODEL(TOKENS, mask=torch.ones(2, 3, dtype=torch.bool, device="meta")),
        "mask is on meta, the input on cpu; move one of them",
    ),
    "a configuration as a dict": (lambda: anything.FeedbackTransformer.from_config({}), "config is of type dict"),
    "a state dict as a path": (lambda: MODEL.load_state_dict("model.pt"), "state_dict is of type str; it must be"),
    "walk: x": (lambda: anything.walk([1], PARAMETERS, DECODER.config), "x is of type list; it must be a tensor"),
    "walk: a module": (lambda: anything.walk(X, DECODER.stack, DECODER.config), "parameters is of type Stack"),
    "walk: a dict": (lambda: anything.walk(X, PARAMETERS, {}), "config is of type dict; it must be a FeedbackConfig"),
    "walk: a parameter": (
        lambda: anything.walk(X, PARAMETERS | {"layer_weight": [1, 2]}, DECODER.config),
        "parameters['layer_weight'] is of type list; it must be a tensor (2,)",
    ),
    "generate: a decoder": (
        lambda: anything.generate(DECODER, TOKENS, max_new_tokens=1),
        "model is of type FeedbackDecoder; it must be a model that reads tokens",
    ),
    "generate: a seed": (
        lambda: anything.generate(MODEL, TOKENS, max_new_tokens=1, generator=3),
        "generator is of type int; it must be a torch.Generator",
    ),
    "generate: a memory as a state": (
        lambda: anything.generate(MODEL, max_new_tokens=1, state=MODEL(TOKENS, return_memory=True)[1]),
        "state is of type Memory; it must be the attribute `state`",
    ),
    "beam_search: a decoder": (
        lambda: anything.beam_search(DECODER, TOKENS, max_new_tokens=1, beams=1),
        "model is of type FeedbackDecoder",
    ),
    "round_weights": (lambda: anything.round_weights(nn.Linear(2, 2), "int8"), "model is of type Linear"),
    "save_state: a memory": (
        lambda: anything.save_state("state", MODEL(TOKENS, return_memory=True)[1], MODEL),
        "state is of type Memory; it must be the attribute `state` of what `generate` returned",
    ),
    "load_state: no model": (lambda: anything.load_state("state", None), "model is of type NoneType"),
    "from_reference: a path": (lambda: anything.from_reference("model.pt", **SIZES), "state_dict is of type str"),
    "from_reference: a checkpoint around it": (
        lambda: anything.from_reference({"model": {}}, **SIZES),
        "the state dict holds another dict, 'model'; give the one with the parameters, such as checkpoint['model']",
    ),
    "from_reference: our own": (
        lambda: anything.from_reference(MODEL.state_dict(), **SIZES),
        "the state dict is of this package's own model, not of 0.0.11",
    ),
    "from_reference: a prefix": (
        lambda: anything.from_reference({"module.token_emb.weight": X}, **SIZES),
        "'module.token_emb.weight' is not a parameter of feedback-transformer-pytorch 0.0.11; if a program",
    ),
    "from_official: no options": (lambda: anything.from_official({}, None), "hyperparameters is of type NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_message_says_what_was_given_and_what_is_expected(name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises(package.InputError, match=re.escape(message)):
        call()


@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")
def test_autocast_and_parameters_of_several_types_take_what_they_take() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert DECODER(X.bfloat16()).shape == X.shape
    model = package.FeedbackDecoder(dim=8, depth=1, mem_len=4, seq_len=1, heads=2, dim_head=4).bfloat16()
    assert model(X.bfloat16()).dtype == torch.bfloat16
