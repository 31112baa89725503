"""Torch's own source of random numbers for a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def generator_of(device: torch.device) -> torch.Generator:
    """The source that a draw without a generator takes."""
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@contextlib.contextmanager
def restored(device: torch.device) -> Iterator[torch.Generator]:
    """The source, which is afterwards as it was before."""
    generator = generator_of(device)
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)
