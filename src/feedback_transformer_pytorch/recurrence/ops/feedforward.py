"""The feed-forward as operations: linear, activation, linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...activation import ACTIVATIONS
from ...config import FeedbackConfig
from ...layers import FeedForward, dropout_mask
from ..layout.buffer import Window
from ..layout.plan import Segment
from ..layout.precision import Precision
from ..layout.tape import Saved, Step
from ..layout.workspace import Workspace
from .chunk import Chunk
from .parameters import Parameters
from .sublayer import SublayerOps


class FeedForwardOps(SublayerOps):
    """The feed-forwards of all layers."""

    name = "feedforward"

    def __init__(self, parameters: Parameters, modules: Sequence[FeedForward], names: Sequence[str]) -> None:
        self.to_hidden = [parameters.linear(f"{name}.to_hidden") for name in names]
        self.to_out = [parameters.linear(f"{name}.to_out") for name in names]
        self._activation = modules[0].activation
        self._dropout, self._dtype = modules[0].dropout, parameters.precision.products
        self._workspace = Workspace()
        depth = len(names)
        self.products: list[Tensor] = [torch.empty(0)] * depth  # (Rc, F), the activations' outputs
        self.grad_hidden: list[Tensor] = [torch.empty(0)] * depth  # (Rc, parts, F)
        self._inputs: list[Tensor] = [torch.empty(0)] * depth

    @classmethod
    def saved(cls, config: FeedbackConfig, precision: Precision) -> Mapping[str, Saved]:
        parts = ACTIVATIONS[config.feedforward].parts
        return {"hidden": Saved("row", parts * config.hidden_dim, precision.products)}

    @classmethod
    def masks(cls, config: FeedbackConfig, precision: Precision, context_tokens: int) -> Mapping[str, Saved]:
        return {"mask": Saved("row", config.hidden_dim, precision.products)} if config.ff_dropout else {}

    def draw(self, segment: Segment, at: Step) -> None:
        mask = at.get("feedforward.mask")
        if mask is not None:
            mask.copy_(dropout_mask(mask, self._dropout))

    def step(self, layer: int, x: Tensor, window: Window, at: Step) -> Tensor:
        hidden = self.to_hidden[layer].step(x, out=at["feedforward.hidden"])
        product, mask = self._activation.step(hidden), at.get("feedforward.mask")
        return self.to_out[layer].step(product if mask is None else product.mul_(mask))

    def recompute(self, layer: int, x: Tensor, chunk: Chunk, windows: Sequence[Window], output: bool) -> Tensor | None:
        hidden = self.to_hidden[layer].step(x, out=chunk.value("feedforward.hidden")[layer])
        if not output:
            return None
        product, mask = self._activation.step(hidden), chunk.values.get("feedforward.mask")
        return self.to_out[layer].step(product if mask is None else product.mul_(mask[layer]))

    def prepare(self, layer: int, x: Tensor, chunk: Chunk) -> None:
        hidden, parts, get = chunk.value("feedforward.hidden")[layer], self._activation.parts, self._workspace.get
        rows, width = hidden.shape[0], hidden.shape[1] // parts
        self._inputs[layer] = x
        self.products[layer] = get(f"product.{layer}", (rows, width), hidden)
        self.grad_hidden[layer] = get(f"grad_hidden.{layer}", (rows, parts, width), hidden)

    def split(self, chunk: Chunk) -> None:
        """Computes the chunk's products and their derivatives too: a step multiplies once."""
        self._steps = []
        masks = chunk.values.get("feedforward.mask")
        for layer, (product, grad_hidden) in enumerate(zip(self.products, self.grad_hidden, strict=True)):
            hidden = chunk.value("feedforward.hidden")[layer]
            # The derivatives stand where the steps write the gradients that are made of them.
            self._activation.derivatives(hidden, product, grad_hidden)
            if masks is not None:
                grad_hidden.mul_(masks[layer][:, None])
                product.mul_(masks[layer])
            parts = (grad_hidden, grad_hidden.flatten(1))
            self._steps.append(list(zip(*(part.split(chunk.counts) for part in parts), strict=True)))

    def step_backward(self, layer: int, index: int, grad: Tensor, window: Window, out: Tensor) -> Tensor:
        grad_hidden, flat = self._steps[layer][index]
        grad_hidden.mul_(self.to_out[layer].step_backward(grad.to(self._dtype))[:, None])
        return self.to_hidden[layer].step_backward(flat, out=out)

    def accumulate(self, layer: int, grad: Tensor, chunk: Chunk) -> None:
        self.to_out[layer].accumulate(grad.to(self._dtype), self.products[layer])
        self.to_hidden[layer].accumulate(self.grad_hidden[layer].flatten(1), self._inputs[layer])
