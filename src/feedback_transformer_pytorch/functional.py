"""The recurrence as a function, for models that embed it with parameters of their own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from .checks import check_kind
from .config import FeedbackConfig, config_of, fields_of
from .decoder import FeedbackDecoder
from .errors import InputError
from .memory import AnyMemory
from .recurrence import Walked, WalkRequest, walk_as_operator, without_numbers


@overload
def walk(
    x: Tensor, parameters: Mapping[str, Tensor], config: FeedbackConfig, *, initial_memory: Any = ...,
    return_memory: Literal[False] = ..., mask: Tensor | None = ..., reset: Tensor | None = ...,
    context: Tensor | None = ..., context_mask: Tensor | None = ..., training: bool = ...,
) -> Tensor: ...  # fmt: skip


@overload
def walk(
    x: Tensor, parameters: Mapping[str, Tensor], config: FeedbackConfig, *, initial_memory: Any = ...,
    return_memory: Literal[True], mask: Tensor | None = ..., reset: Tensor | None = ...,
    context: Tensor | None = ..., context_mask: Tensor | None = ..., training: bool = ...,
) -> tuple[Tensor, AnyMemory]: ...  # fmt: skip


def walk(
    x: Tensor,
    parameters: Mapping[str, Tensor],
    config: FeedbackConfig,
    *,
    initial_memory: Any = None,
    return_memory: bool = False,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
    training: bool = False,
) -> Tensor | tuple[Tensor, AnyMemory]:
    """Embeddings to the states of the top layer: the Feedback Transformer (Fan et al. 2020, arXiv 2002.09402, section
    3) without the norm that a model puts after the last layer.

    It is the operator `torch.ops.feedback_transformer_pytorch.walk`, which `torch.compile(fullgraph=True)` and
    `torch.export` take as one node. It has gradients for x, the parameters, the memory and the context, but no second
    derivatives, and its backward pass recomputes part of the forward pass, so that training takes longer than with a
    `FeedbackDecoder`. In a trace, `mask` and `reset` break the graph, since the number of segments depends on them.

    Args:
        x: (B, T, D), floating point, T >= 1.
        parameters: by the names, and with the shapes, that `FeedbackDecoder(...).stack.named_parameters()` gives; all
            of the type and on the device of x.
        config: the hyperparameters.
        initial_memory: what an earlier call returned, or a pair of keys and values (B, n, K*G*E) of the n newest
            tokens; None starts afresh. K is the banks of keys and values: 1 with kv="shared", otherwise L.
        return_memory: return the memory of the newest M tokens after x too.
        mask: (B, T) bool, True at a real token. A padded token is as if it were not there; the state at its place
            means nothing.
        reset: (B, T) bool, True where a new document starts: nothing before it is visible to it or after.
        context: (B, N, C), what every token also attends to; for a configuration with a `context_dim`, and only for it.
        context_mask: (B, N) bool, True at what is seen of the context; None: all of it.
        training: whether the configuration's dropout is on. Its masks come from one number that is drawn from torch's
            generator of the CPU.

    Returns:
        states (B, T, D), or the pair of states and memory.

    Raises:
        InputError: a parameter is missing, unknown or of another shape than the configuration says, or a shape, type or
            device of an input does not fit.
    """
    check_kind("x", x, Tensor, "a tensor (batch, time >= 1, dim)")
    check_kind("parameters", parameters, Mapping, "a mapping: dict(decoder.stack.named_parameters())")
    check_kind("config", config, FeedbackConfig, "a FeedbackConfig, as decoder.config is one")
    recurrence = _recurrence(config, training)
    expected = dict(recurrence.named_parameters())
    given = {f"stack.{name}": parameter for name, parameter in parameters.items()}
    for name, tensor in expected.items():
        if name not in given:
            raise InputError(f"parameters has no {name[6:]!r}; this configuration has one {tuple(tensor.shape)}")
        check_kind(f"parameters[{name[6:]!r}]", given[name], Tensor, f"a tensor {tuple(tensor.shape)}")
        if given[name].shape != tensor.shape:
            raise InputError(
                f"parameters[{name[6:]!r}] is {tuple(given[name].shape)}; it must be {tuple(tensor.shape)} with this "
                "configuration"
            )
        if given[name].dtype != x.dtype or given[name].device != x.device:
            raise InputError(
                f"parameters[{name[6:]!r}] is {given[name].dtype} on {given[name].device}, x {x.dtype} on {x.device}; "
                "give both the same"
            )
    for name in given:
        if name not in expected:
            raise InputError(
                f"parameters has {name[6:]!r}, which this configuration has not; give what "
                "decoder.stack.named_parameters() gives"
            )
    options = {"mask": mask, "reset": reset, "context": context, "context_mask": context_mask}
    result: Tensor | tuple[Tensor, AnyMemory] = torch.func.functional_call(
        recurrence, given, (x, initial_memory, return_memory), options
    )
    return result


class _Recurrence(FeedbackDecoder):
    """A decoder without its last norm, walked by the operator."""

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__(**config.to_dict())
        self.norm = nn.Identity()

    def _walk(self, request: WalkRequest) -> Walked:
        return walk_as_operator(self.stack, request)


# Without numbers: a call lends them parameters, each thread its own. They stand in a dictionary, since a trace can read
# a module from one but not from the result of a function that it does not trace.
_recurrences: dict[str, _Recurrence] = {}


def _recurrence(config: FeedbackConfig, training: bool) -> _Recurrence:
    fields = fields_of(config)
    thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
    key = repr((fields, training, thread))
    _provide(key, fields, training)
    return _recurrences[key]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _provide(key: str, fields: tuple[Any, ...], training: bool) -> bool:
    """Puts a recurrence into `_recurrences` unless it is there."""
    if key not in _recurrences:
        with without_numbers():
            recurrence = _Recurrence(config_of(fields))
        _recurrences[key] = recurrence.train(training)
    return True
