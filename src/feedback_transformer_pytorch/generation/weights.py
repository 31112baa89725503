"""Models whose weights are rounded, so that a token reads fewer bytes."""

from __future__ import annotations

import copy
import warnings
from typing import Literal, TypeVar, get_args

import torch

from ..errors import InputError
from ..model import FeedbackTransformer
from ..recurrence import round_linears, rounded_weights_reason
from .reader import Model, check_model

Weights = Literal["float32", "bfloat16", "int8"]
Rounded = TypeVar("Rounded", bound=Model)


def round_weights(model: Rounded, weights: Weights) -> Rounded:
    """A copy of a model in float32, with the weights of all Linears rounded.

    It is a model like any other: what generates, evaluates or saves a state takes it, in the place of the first. The
    compiled CPU kernel sees that weights are rounded and reads them as what they are, with half or a quarter of the
    bytes. All else is in float32: activations, sums, the memory, and the few other parameters.

    Args:
        weights: "bfloat16" rounds every number. "int8" rounds the weights of each output of a Linear to whole numbers
            from -127 to 127 times a scale of the output. "float32" rounds nothing that is in float32.

    Warns:
        UserWarning: the kernel does not read this model. The function is the same, but not faster.

    Raises:
        InputError: there are no such weights, or the model is no language model.
    """
    check_model(model)
    if weights not in get_args(Weights):
        raise InputError(f"weights is {weights!r}; it must be one of {get_args(Weights)}")
    copied = copy.deepcopy(model)
    copied.float()
    if weights == "float32":
        return copied
    round_linears(copied, getattr(torch, weights))
    reason = _unread_reason(copied)
    if reason is not None:
        warnings.warn(f"weights in {weights} are read as float32, which is not faster: {reason}", stacklevel=2)
    return copied


def _unread_reason(model: Model) -> str | None:
    """Why rounded weights are not read as what they are, as half a sentence; None if they are."""
    if not isinstance(model, FeedbackTransformer):
        return f"the kernel does not walk a {type(model).__name__}"
    if model.implementation == "stepwise":
        return "implementation is 'stepwise'"
    return rounded_weights_reason(model.decoder.stack, model.token_emb.weight.detach()[:1, None])
