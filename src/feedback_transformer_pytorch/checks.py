"""Whether a model can read what it is given."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from .config import FeedbackConfig
from .errors import InputError
from .layers import ContextKeysValues


def check_context(
    x: Tensor, context: Tensor | ContextKeysValues | None, mask: Tensor | None, config: FeedbackConfig
) -> None:
    """Raises InputError unless there is a context if and only if the model has one, and its shapes fit x (B, T, D)."""
    if config.context_dim is None:
        if context is not None or mask is not None:
            raise InputError("context is given, but the model has none; build it with context_dim=C for a context")
        return
    if context is None:
        raise InputError(f"context is missing; this model attends to one (batch, N >= 1, {config.context_dim})")
    if isinstance(context, ContextKeysValues):
        _check_projected(x, context)
    else:
        _check_context(x, context, config.context_dim)
    batch, count = (context.keys[0] if isinstance(context, ContextKeysValues) else context).shape[:2]
    check_flags("context_mask", mask, (batch, count), x.device)


def _check_context(x: Tensor, context: Tensor, width: int) -> None:
    check_kind("context", context, Tensor, f"a tensor (batch, N >= 1, {width})")
    if context.ndim != 3 or (context.shape[0], context.shape[2]) != (x.shape[0], width) or not context.shape[1]:
        raise InputError(f"context is {tuple(context.shape)}; it must be (batch={x.shape[0]}, N >= 1, {width})")
    autocast = torch.is_autocast_enabled(x.device.type)
    if context.device != x.device or (context.dtype != x.dtype and not autocast):
        raise InputError(
            f"context is {context.dtype} on {context.device}, the input {x.dtype} on {x.device}; give both the same"
        )


def _check_projected(x: Tensor, context: ContextKeysValues) -> None:
    keys = context.keys[0]
    if torch.is_grad_enabled():
        raise InputError(
            "context is what project_context made of one, and gradients are on; give the context itself, or call the "
            "model under torch.no_grad()"
        )
    if keys.shape[0] != x.shape[0] or keys.device != x.device:
        raise InputError(
            f"context has keys {tuple(keys.shape)} on {keys.device}; they must be (batch={x.shape[0]}, N, heads, "
            f"dim_head) on {x.device}, as the input"
        )


def check_tokens(x: Tensor, num_tokens: int) -> None:
    """Raises InputError unless x is (B, T) torch.int64 or int32 in [0, V), neither B nor T zero."""
    check_kind("x", x, Tensor, "a tensor of whole numbers (batch >= 1, time >= 1)")
    if x.ndim != 2 or x.numel() == 0 or x.dtype not in (torch.int64, torch.int32):
        raise InputError(
            f"x is {x.dtype} {tuple(x.shape)}; it must be whole numbers (batch >= 1, time >= 1), torch.int64 or int32"
        )
    if torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    low, high = (int(end) for end in torch.aminmax(x))
    if low < 0 or high >= num_tokens:
        raise InputError(f"x holds token {low if low < 0 else high}; tokens must be in [0, num_tokens={num_tokens})")


def check_flags(name: str, flags: Tensor | None, shape: Sequence[int], device: torch.device) -> None:
    """Raises InputError unless the argument is None or a tensor of truth values of this shape on this device."""
    if flags is None:
        return
    check_kind(name, flags, Tensor, f"a tensor, torch.bool {tuple(shape)}")
    if flags.shape != tuple(shape) or flags.dtype != torch.bool:
        raise InputError(f"{name} is {flags.dtype} {tuple(flags.shape)}; it must be torch.bool {tuple(shape)}")
    if flags.device != device:
        raise InputError(f"{name} is on {flags.device}, the input on {device}; move one of them")


def check_kind(name: str, value: object, kind: type, expected: str) -> None:
    """Raises InputError unless the argument is an instance of `kind`, which the message calls `expected`."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is of type {type(value).__name__}; it must be {expected}")


def check_count(name: str, value: int, least: int) -> None:
    """Raises InputError unless the argument is a whole number of at least `least`."""
    try:
        fits = operator.index(value) >= least
    except TypeError:
        fits = False
    if not fits:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least {least}")
