"""Stacks whose Linears carry LoRA adapters, as plain stacks with other weights.

An adapter of rank r adds B A x to a Linear's W x (Hu et al. 2021, arXiv 2106.09685). During a call W + B A is one
weight, the same for every token. So it is made once a call, and the walk takes it in place of W. Autograd leads its
gradient to A and B.

Only the plain adapter of `peft` is known. Any other one stays where it is, and the walk falls back to the definition.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .applicability import is_called_plainly
from .stack import Stack


class Unadapted(NamedTuple):
    """A stack without the adapters that are known.

    Attributes:
        stack: the stack; it shares its modules, but for those that hold adapters, with the original.
        adapters: what stood in place of a Linear, by name.
    """

    stack: Stack
    adapters: dict[str, Any]

    def parameters(self) -> dict[str, Tensor]:
        """The parameters of the stack by name, with adapters in the weights."""
        parameters: dict[str, Tensor] = dict(self.stack.named_parameters())
        with torch.autocast(self.stack.layer_weight.device.type, enabled=False):
            return parameters | {f"{name}.weight": _weight(adapter) for name, adapter in self.adapters.items()}


def without_adapters(stack: Stack) -> Unadapted:
    """The stack, and the adapters that are left out of it."""
    adapters = {name: module for name, module in stack.named_modules() if _is_plain_lora(module)}
    if not adapters:
        return Unadapted(stack, adapters)
    return Unadapted(cast(Stack, _copy_without(stack, {id(adapter) for adapter in adapters.values()})), adapters)


def adapter_settings(module: nn.Module) -> tuple[Any, ...] | None:
    """What the weight of a Linear depends on besides parameters, where it carries adapters; None where it carries
    none."""
    if not _is_lora(module):
        return None
    adapted: Any = module
    scaling = [(name, adapted.scaling[name]) for name in _active(adapted)]
    return adapted.disable_adapters, list(adapted.merged_adapters), scaling


def _copy_without(module: nn.Module, adapters: set[int]) -> nn.Module:
    if id(module) in adapters:
        return cast(nn.Module, module.base_layer)
    children = {name: child and _copy_without(child, adapters) for name, child in module._modules.items()}
    if all(child is module._modules[name] for name, child in children.items()):
        return module  # not every module can be copied, such as one with a parametrization
    left = copy.copy(module)
    left._modules = children
    return left


def _is_plain_lora(module: Any) -> bool:
    """Whether a module is a Linear whose adapters only add a product to its weight."""
    if not _is_lora(module) or not is_called_plainly(module):
        return False
    if module.disable_adapters:
        return not module.merged  # a call would take the adapters out of the weight
    base = module.base_layer
    return bool(module.merged) or (
        not module.fan_in_fan_out and all(_only_adds(module, name, base) for name in _active(module))
    )


def _is_lora(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__ == "peft.tuners.lora.layer" and kind.__name__ == "Linear"


def _only_adds(module: Any, name: str, base: Any) -> bool:
    """Whether an adapter is a number and two plain matrices, of the type and on the device of the Linear's own."""
    if name in module.lora_variant or not _is_identity(module.lora_dropout[name]):
        return False
    if type(module.scaling[name]) not in (int, float):
        return False
    return all(_is_matrix_like(linear, base.weight) for linear in (module.lora_A[name], module.lora_B[name]))


def _is_identity(dropout: Any) -> bool:
    drops = type(dropout) is nn.Dropout and dropout.p > 0 and dropout.training
    return type(dropout) in (nn.Identity, nn.Dropout) and not drops and is_called_plainly(dropout)


def _is_matrix_like(linear: Any, like: Tensor) -> bool:
    """Whether a module is a Linear without a bias, of the type and on the device of `like`."""
    if type(linear) is not nn.Linear or linear._parameters["bias"] is not None or not is_called_plainly(linear):
        return False
    return (linear.weight.dtype, linear.weight.device) == (like.dtype, like.device)


def _active(module: Any) -> list[str]:
    return [name for name in module.active_adapters if name in module.lora_A]


def _weight(module: Any) -> Tensor:
    """The weight of a Linear with its adapters."""
    weight: Tensor = module.base_layer.weight
    if module.disable_adapters or module.merged:
        return weight
    for name in _active(module):
        weight = torch.addmm(weight, module.lora_B[name].weight, module.lora_A[name].weight, alpha=module.scaling[name])
    return weight
