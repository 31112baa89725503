"""Where the fused walk would not compute what the modules say."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..layers import Attention, Block, FeedForward
from ..position import RelativePosition
from .stack import Stack

_PLAIN = (Attention, Block, FeedForward, RelativePosition, Stack, nn.Embedding, nn.LayerNorm, nn.Linear, nn.ModuleList)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_warned: set[str] = set()


def unsupported_reason(stack: Stack, x: Tensor) -> str | None:
    """Why the fused walk does not apply, as half a sentence; None if it does."""
    for name, module in stack.named_modules():
        if type(module) not in _PLAIN:
            return f"{name} is a {type(module).__name__}, not a plain module (adapted, quantised or parametrized)"
        if not is_called_plainly(module):
            return f"{name or 'the stack'} has hooks"
    for name, parameter in stack.named_parameters():
        if type(parameter) not in (nn.Parameter, Tensor):
            return f"{name} is a {type(parameter).__name__}, not a plain tensor"
        if parameter.dtype != x.dtype:
            return f"{name} is {parameter.dtype}, the input {x.dtype}"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is on"
    return None


def is_called_plainly(module: nn.Module) -> bool:
    """Whether a call of the module is a call of its class's `forward` and nothing else."""
    return "forward" not in vars(module) and not any(getattr(module, hooks) for hooks in _HOOKS)


def warn_once(reason: str) -> None:
    """Warns that the stepwise walk is taken, the first time for each reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"the fused recurrence steps aside for the stepwise one: {reason}", stacklevel=2)
