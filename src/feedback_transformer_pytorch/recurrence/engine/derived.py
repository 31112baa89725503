"""What a walk reads that is no parameter itself but made of parameters: differentiable, and made once a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...position import ScoreTerm
from ..stack import Stack
from ..substitution import with_parameters


class Derived(NamedTuple):
    """Tensors made of parameters.

    Attributes:
        mix: (L+1,), the weights of the states in what is stored; None where it is the top layer's.
        terms: what distances below M+S add to the scores.
        spans: (L, H, M+S), the soft mask of each distance; None without adaptive spans.
        reach: (L,), the largest distance that each layer sees; None without adaptive spans.
        memory_weight: (K*2*G*E, D), of all banks, keys first in each, with the gains of the memory's norms in it; None
            where it is the shared projection as it is.
        memory_bias: (K*2*G*E,), what the biases of those norms add; None for nothing.
    """

    mix: Tensor | None
    terms: list[ScoreTerm]
    spans: Tensor | None
    reach: Tensor | None
    memory_weight: Tensor | None
    memory_bias: Tensor | None


def derive(stack: Stack, parameters: Mapping[str, Tensor]) -> Derived:
    """What is made of parameters, given by their names in the stack."""
    config, stack = stack.config, with_parameters(stack, parameters)
    mix: Tensor | None = None
    if config.stored == "mix":
        mix = stack.layer_weight.softmax(0)
    elif config.stored != "top" and config.stored != config.depth:
        mix = torch.zeros_like(stack.layer_weight)
        mix[config.stored] = 1
    distances = config.mem_len + config.seq_len
    spans = reach = None
    if config.adaptive_span:
        steps = torch.arange(distances, device=stack.layer_weight.device)
        modules = [layer.attention.span for layer in stack.layers]
        spans = torch.stack([span.soft_mask(steps) for span in modules if span is not None])
        reach = torch.stack(stack.reaches())
    return Derived(mix, stack.position(distances), spans, reach, *_memory(stack))


def _memory(stack: Stack) -> tuple[Tensor | None, Tensor | None]:
    """`Derived.memory_weight` and `memory_bias`."""
    config, weights, biases = stack.config, [], []
    if config.kv == "shared" and config.memory_norm != "layer":
        return None, None
    for layer in stack.layers[: config.banks]:
        to_kv = stack.to_kv if stack.to_kv is not None else layer.attention.to_kv
        norm = stack.norm if stack.norm is not None else layer.attention.norm
        assert to_kv is not None
        if config.memory_norm != "layer":
            weights.append(to_kv.weight)
            continue
        assert norm is not None
        weights.append(to_kv.weight * norm.weight)
        biases.append(to_kv.weight @ norm.bias)
    return torch.cat(weights), torch.cat(biases) if biases else None


def parameter_gradients(
    parameters: Mapping[str, Tensor], pairs: list[tuple[Tensor | None, Tensor | None]]
) -> dict[str, Tensor]:
    """The gradients of the parameters, from pairs of a derived tensor and its gradient."""
    known: list[Any] = [(t, g) for t, g in pairs if t is not None and g is not None and t.requires_grad]
    needs_grad = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if not known or not needs_grad:
        return {}
    found = torch.autograd.grad(
        [tensor for tensor, _ in known],
        list(needs_grad.values()),
        [grad.to(tensor.dtype) for tensor, grad in known],
        allow_unused=True,
    )
    return {name: grad for name, grad in zip(needs_grad, found, strict=True) if grad is not None}
