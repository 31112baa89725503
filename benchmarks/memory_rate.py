"""How fast this machine reads memory, and how long a token must at least take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from feedback_transformer_pytorch.generation import Weights

FAR_MORE_THAN_A_CACHE = 2**30  # bytes
STREAMS = 8
BYTES: dict[Weights, int] = {"float32": 4, "bfloat16": 2, "int8": 1}


def read_rate(in_bytes: int = FAR_MORE_THAN_A_CACHE, seconds: float = 2.0) -> float:
    """The highest rate, in bytes a second, at which all threads read so many bytes over and over, for some seconds."""
    numbers = torch.ones(STREAMS, in_bytes // (4 * STREAMS))
    # From start to end, and a few pages at once, which may be faster.
    readers: list[Callable[[], Any]] = [numbers.sum, numbers.amax, lambda: numbers.sum(0)]
    best, start = 0.0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for read in readers:
            before = time.perf_counter()
            read()
            best = max(best, in_bytes / (time.perf_counter() - before))
    return best


def weight_bytes(model: nn.Module, weights: Weights) -> int:
    """The bytes of all parameters that a token reads: of embeddings it reads next to nothing."""
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            is_rounded = isinstance(module, nn.Linear) and name == "weight"
            total += parameter.numel() * (BYTES[weights] if is_rounded else 4)
            if is_rounded and weights == "int8":
                total += 4 * len(parameter)  # the scales
    return total
