"""Weights packed in the order in which the kernel's products read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layout.rounding import row_scales
from . import structures
from .library import NARROW, library


class Packing:
    """Packs weights in one of the kernel's types. What it packs lives as long as it does."""

    def __init__(self, name: str, dtype: torch.dtype, threads: int, streams: int) -> None:
        """Sets up.

        Args:
            name: the type as the names of the kernel's functions have it.
            dtype: what a packed number is.
            threads: how many pack.
            streams: in how many streams a product reads a weight.
        """
        compiled = library()
        assert compiled is not None
        self._pack, self._panel = getattr(compiled, f"pack_{name}"), getattr(compiled, f"panel_{name}")()
        self._dtype, self._threads, self._streams = dtype, threads, streams
        self._in_pairs, self._narrow = name.endswith("_pairs"), name in NARROW.values()
        self._references: list[Any] = []

    def linear(self, weight: Tensor, bias: Tensor | None, scale: float = 1.0) -> structures.PackedLinear:
        """A weight (out, in), which is multiplied with `scale`, and a bias (out,)."""
        scales = None
        if self._narrow:
            weight, scales, scale = *_numbers_and_scales(weight, self._dtype, scale), 1.0
        outputs, inputs = weight.shape
        panels = -(-outputs // self._panel)
        depth = inputs + inputs % 2 if self._in_pairs else inputs
        packed = weight.new_empty(panels, depth, self._panel, dtype=self._dtype)
        self._pack(weight.data_ptr(), outputs, inputs, *weight.stride(), scale, packed.data_ptr(), self._threads)
        bias_address, scales_address = (None if part is None else self.address(part) for part in (bias, scales))
        return structures.PackedLinear(
            self.address(packed), bias_address, scales_address, inputs, outputs, self._streams
        )

    def address(self, tensor: Tensor) -> int:
        """The address of a contiguous tensor, which lives as long as this."""
        tensor = tensor.contiguous()
        self._references.append(tensor)
        return tensor.data_ptr()


def _numbers_and_scales(weight: Tensor, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor | None]:
    """What is packed of a weight (out, in) in this type, and what its products (out,) are multiplied with."""
    if dtype == torch.int8:
        scales = row_scales(weight)
        return weight / scales, scales[:, 0] * scale
    return weight, weight.new_full(weight.shape[:1], scale) if scale != 1.0 else None
