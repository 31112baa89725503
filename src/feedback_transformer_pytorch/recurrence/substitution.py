"""Modules with other tensors in the place of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def with_parameters(module: _Module, parameters: Mapping[str, Tensor]) -> _Module:
    """A copy of a module with these tensors as parameters, by name; it shares all else.

    `torch.func.functional_call` would put the tensors into the module itself for as long as a call lasts, and two calls
    in two threads would then mix them up.
    """
    replaced = {id(own): parameters[name] for name, own in module.named_parameters() if name in parameters}
    return _copy(module, replaced)


def _copy(module: _Module, replaced: Mapping[int, Tensor]) -> _Module:
    copied = object.__new__(type(module))
    parameters = {name: own if own is None else replaced.get(id(own), own) for name, own in module._parameters.items()}
    modules = {name: child if child is None else _copy(child, replaced) for name, child in module._modules.items()}
    copied.__dict__.update(module.__dict__, _parameters=parameters, _modules=modules)
    return copied
