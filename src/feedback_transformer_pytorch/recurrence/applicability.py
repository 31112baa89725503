"""Where a fast walk computes what the modules say.

A fast walk reads the parameters of a stack and its configuration, and calls no module. So it is right only where the
modules are those that the configuration builds: this is what is compared, module by module.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as module_globals
from torch.utils._python_dispatch import _disable_current_modes

from ..config import FeedbackConfig
from .stack import Stack

# What may differ: where parameters are and which mode is on is checked by itself, `eps` is read from the modules.
_FREE = {"training", "eps", "_parameters", "_buffers", "_modules", "_is_full_backward_hook"}
# Types of parameters that a walk reads, and what stands for them while torch traces.
_PLAIN = (nn.Parameter, Tensor)
_TRACED = (FakeTensor, FunctionalTensor)
_warned: set[str] = set()


class _Expected(NamedTuple):
    """A module as the configuration builds it.

    Attributes:
        cls: its class.
        attributes: all that it holds besides parameters, modules and hooks.
        parameters: their shapes.
    """

    cls: type[nn.Module]
    attributes: dict[str, Any]
    parameters: dict[str, torch.Size]


def difference_from_configuration(stack: Stack, x: Tensor) -> str | None:
    """What a stack has that its configuration does not build, as half a sentence; None for nothing."""
    if _global_hooks():
        return "a global module hook is registered"
    expected = _expected(stack.config, _distances(stack))
    modules = dict(stack.named_modules(remove_duplicate=False))
    if modules.keys() != expected.keys():
        names = ", ".join(sorted(modules.keys() ^ expected.keys()))
        return f"the modules are not those of the configuration: {names}"
    seen: dict[int, str] = {}
    for name, module in modules.items():
        label = name or "the stack"
        reason = _difference(module, expected[name], stack, x)
        if reason is not None:
            return f"{label} {reason}"
        for key, thing in ((label, module), *((f"{label}.{key}", p) for key, p in module._parameters.items())):
            if thing is not None and seen.setdefault(id(thing), key) != key:
                return f"{key} is also {seen[id(thing)]}"
    return None


def is_called_plainly(module: nn.Module) -> bool:
    """Whether a call of the module is a call of its class's `forward` and nothing else."""
    return "forward" not in vars(module) and not _hooks(module) and not _global_hooks()


def computes_like(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether a module is of this class, or of a subclass that changes nothing of what a call reaches."""
    kind = type(module)
    if kind is cls:
        return True
    if not issubclass(kind, cls):
        return False
    held = frozenset((*vars(module), *module._parameters, *module._buffers, *module._modules))
    return _looks_up_the_same(cast(Hashable, kind), cast(Hashable, cls), held)


def warn_once(reason: str) -> None:
    """Warns that the definition is taken, the first time for each reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"the fused recurrence falls back to the slower definition: {reason}", stacklevel=2)


@contextlib.contextmanager
def without_numbers() -> Iterator[None]:
    """Modules that are built in here have parameters without numbers. A trace does not see them being built."""
    with _disable_current_modes(), torch.device("meta"):
        yield


def _distances(stack: Stack) -> int:
    """For how many distances the stack's position was made; mem_len and seq_len may have been set to less since."""
    least = stack.config.mem_len + stack.config.seq_len
    return max(least, getattr(stack.position, "known_distances", None) or least)


@lru_cache(maxsize=16)
def _expected(config: FeedbackConfig, distances: int) -> dict[str, _Expected]:
    """The modules of a stack, by their names."""
    with without_numbers():
        stack = Stack(config)
        if distances > config.mem_len + config.seq_len:
            stack.position = type(stack.position)(heads=config.heads, dim_head=config.dim_head, distances=distances)
    return {
        name: _Expected(
            type(module),
            _attributes(module),
            {key: p.shape for key, p in module._parameters.items() if p is not None},
        )
        for name, module in stack.named_modules()
    }


def _difference(module: nn.Module, expected: _Expected, stack: Stack, x: Tensor) -> str | None:
    """What a module has that the walk does not compute; None for nothing."""
    if not computes_like(module, expected.cls):
        return f"is a {type(module).__name__}, not a plain {expected.cls.__name__} (adapted, quantised or parametrized)"
    if _hooks(module):
        return "has hooks"
    if getattr(module, "dropout", 0) and module.training != stack.training:
        return f"is in {'training' if module.training else 'eval'} mode, the stack is not"
    attributes = _attributes(module)
    for name, value in expected.attributes.items():
        here = attributes.get(name)
        if here is not value and (type(here) is not type(value) or here != value):
            return f"has {name}={here!r}, where the configuration has {value!r}"
    overridden = _reached(cast(Hashable, expected.cls)).intersection(attributes)
    if overridden:
        return f"has a {min(overridden)} of its own"
    if any(buffer is not None for buffer in module._buffers.values()):
        return f"has buffers: {', '.join(module._buffers)}"
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    if parameters.keys() != expected.parameters.keys():
        return f"has parameters {sorted(parameters)}, where the configuration has {sorted(expected.parameters)}"
    for name, parameter in parameters.items():
        if type(parameter) not in (*_PLAIN, *(_TRACED if torch.compiler.is_compiling() else ())):
            return f"has a {name} that is a {type(parameter).__name__}, not a plain tensor"
        if parameter.shape != expected.parameters[name]:
            return f"has a {name} of shape {tuple(parameter.shape)}, not {tuple(expected.parameters[name])}"
        if parameter.dtype != x.dtype:
            return f"has a {name} of {parameter.dtype}, the input is {x.dtype}"
    return None


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds besides its mode, parameters, modules and hooks."""
    return {name: value for name, value in vars(module).items() if name not in _FREE and not name.endswith("hooks")}


def _hooks(module: nn.Module) -> bool:
    """Whether calling the module, or going back through it, runs anything of somebody else."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _global_hooks() -> bool:
    return bool(
        module_globals._global_forward_hooks
        or module_globals._global_forward_pre_hooks
        or module_globals._global_backward_hooks
        or module_globals._global_backward_pre_hooks
    )


@lru_cache(maxsize=256)
def _looks_up_the_same(kind: Any, cls: Any, held: frozenset[str]) -> bool:
    """Whether a call of an instance that holds these names finds in one class what it finds in the other."""
    names = held | _reached(cls)
    return all(inspect.getattr_static(kind, name, None) is inspect.getattr_static(cls, name, None) for name in names)


@lru_cache(maxsize=64)
def _reached(cls: Any) -> frozenset[str]:
    """The names of a class that a call of its instances may look up."""
    mro = cls.__mro__
    names = {name for ancestor in mro[: mro.index(nn.Module)] for name in vars(ancestor)}
    names = {name for name in names if not name.startswith("__")}
    names |= {"__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__", "__len__", "__iter__"}
    return frozenset(names - {"extra_repr", "reset_parameters", "state_dict", "load_state_dict", "from_config"})
