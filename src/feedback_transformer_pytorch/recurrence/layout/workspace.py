"""Buffers that are written afresh for every chunk."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Hands out the same memory for every chunk: fresh memory costs as much as computing what goes into it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """An unwritten tensor; it replaces the one that was got under this name before."""
        dtype = dtype or like.dtype
        size = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = like.new_empty(size, dtype=dtype)
        return buffer[:size].view(shape)
