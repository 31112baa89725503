"""The protocol of a sub-layer's operations, and the residual connection around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...config import FeedbackConfig, NormPlacement
from ..layout.buffer import Window
from ..layout.plan import Segment
from ..layout.precision import Precision
from ..layout.tape import Saved, Step
from ..layout.workspace import Workspace
from .chunk import Chunk
from .key_value_gradient import KeyValueGradient
from .norm import Norm


class SublayerOps:
    """The same sub-layer of all layers: a function of rows (R, D) without norm and residual.

    `step` computes a step of one layer. The backward pass begins with `begin_backward` and goes chunk by chunk:
    `prepare` takes a chunk's inputs in bulk; `split` splits it into steps; between `begin_step` and `end_step` each
    layer's `step_backward` is called, from the top; `accumulate` adds the chunk's parameter gradients. At the end
    `finish` is called, then `input_gradients`.

    A subclass overrides what it needs. Products with parameters are computed in `precision.products`, which is the type
    of the rows that come in and go out.
    """

    name: str

    @classmethod
    def saved(cls, config: FeedbackConfig, precision: Precision) -> Mapping[str, Saved]:
        """What `step` saves for the backward pass, by name, in `at["<sub-layer>.<name>"]`."""
        raise NotImplementedError

    @classmethod
    def masks(cls, config: FeedbackConfig, precision: Precision, context_tokens: int) -> Mapping[str, Saved]:
        """Its dropout masks, likewise, if dropout is on, where the context has so many tokens."""
        return {}

    def draw(self, segment: Segment, at: Step) -> None:
        """Draws a segment's dropout masks, in the order and the shapes of the definition."""

    def step(self, layer: int, x: Tensor, window: Window, at: Step) -> Tensor:
        """(R, D) to (R, D); writes what is saved into `at`."""
        raise NotImplementedError

    def recompute(self, layer: int, x: Tensor, chunk: Chunk, windows: Sequence[Window], output: bool) -> Tensor | None:
        """Recomputes what is saved of a layer for a chunk of steps with inputs (Rc, D); returns the output if asked."""
        raise NotImplementedError

    def begin_backward(self, memory: KeyValueGradient, grad_bias: Tensor | None) -> None:
        """Begins a backward walk by torch operations.

        Args:
            memory: the gradient of the memory's keys and values.
            grad_bias: (H, M+S), what the gradients of the biases are added to; None for none.
        """

    def prepare(self, layer: int, x: Tensor, chunk: Chunk) -> None:
        """Takes the inputs (Rc, D) of a chunk's steps in a layer."""
        raise NotImplementedError

    def split(self, chunk: Chunk) -> None:
        """Splits the prepared chunk into its steps, for `step_backward`."""

    def begin_step(self, index: int) -> None:
        """Begins the chunk's step number `index`."""

    def step_backward(self, layer: int, index: int, grad: Tensor, window: Window, out: Tensor) -> Tensor:
        """Writes the gradient (R, D) of the input of the chunk's step number `index`, from that of the output."""
        raise NotImplementedError

    def end_step(self, segment: Segment, place: int, index: int, window: Window) -> None:
        """Ends a step, whose segment is number `place` of its strip."""

    def accumulate(self, layer: int, grad: Tensor, chunk: Chunk) -> None:
        """Adds a layer's parameter gradients; grad (Rc, D) is that of the outputs of the chunk."""
        raise NotImplementedError

    def finish(self) -> None:
        """Does what is left to do after the last step."""

    def input_gradients(self) -> dict[str, Tensor]:
        """The gradients of inputs of the walk that this sub-layer alone reads, by name."""
        return {}


class PreparedNorm(NamedTuple):
    """What the backward pass of a norm needs of a chunk."""

    x: Tensor  # (Rc, D), its input
    mean: Tensor  # (Rc, 1)
    rstd: Tensor  # (Rc, 1)
    grad_input: Tensor  # (Rc, D), the gradient of the sub-layer's input, written by the steps
    grad_total: Tensor | None  # (Rc, D), of the sum of input and output, written by the steps; None for "pre"


class Residual:
    """A sub-layer with its norm and its residual connection: x + f(norm(x)), or norm(x + f(x))."""

    def __init__(self, ops: SublayerOps, norms: list[Norm], placement: NormPlacement, dtype: torch.dtype) -> None:
        """Sets up; `dtype` is that of products with parameters."""
        self.ops, self.norms, self.name = ops, norms, ops.name
        self._pre, self._dtype = placement == "pre", dtype
        self._workspace = Workspace()
        self.prepared: list[PreparedNorm] = []

    @staticmethod
    def saved(name: str, number: int, config: FeedbackConfig, dtype: torch.dtype) -> dict[str, Saved]:
        """What is saved besides what the sub-layer saves; `dtype` is that of states."""
        saved = {} if number == 0 else {f"{name}.input": Saved("row", config.dim, dtype)}
        if config.norm == "post":
            saved[f"{name}.total"] = Saved("row", config.dim, dtype)
        return saved

    def step(self, layer: int, x: Tensor, window: Window, at: Step, out: Tensor) -> Tensor:
        """States (R, D) to states (R, D), written into `out`."""
        norm = self.norms[layer]
        if self._pre:
            return torch.add(x, self.ops.step(layer, norm.step(x).to(self._dtype), window, at), out=out)
        total = torch.add(x, self.ops.step(layer, x.to(self._dtype), window, at), out=at[f"{self.name}.total"])
        return out.copy_(norm.step(total))

    def recompute(self, layer: int, chunk: Chunk, windows: Sequence[Window], out: Tensor | None) -> None:
        """Recomputes what is saved of a layer for a chunk; writes the states after it into `out`, if that is given."""
        x, norm = chunk.input(self.name, layer), self.norms[layer]
        if self._pre:
            y = self.ops.recompute(layer, norm.step(x).to(self._dtype), chunk, windows, out is not None)
            if out is not None and y is not None:
                torch.add(x, y, out=out)
            return
        y = self.ops.recompute(layer, x.to(self._dtype), chunk, windows, True)
        assert y is not None
        total = torch.add(x, y, out=chunk.value(f"{self.name}.total")[layer])
        if out is not None:
            out.copy_(norm.step(total))

    def prepare(self, chunk: Chunk) -> None:
        """Prepares a chunk in all layers: the norms' statistics, and the sub-layers' inputs."""
        self.prepared = []
        for layer, norm in enumerate(self.norms):
            x = chunk.input(self.name, layer)
            normed, mean, rstd = norm.recompute(x if self._pre else chunk.value(f"{self.name}.total")[layer])
            inputs = (normed if self._pre else x).to(self._dtype)
            grad_input = self._workspace.get(f"grad_input.{layer}", tuple(x.shape), inputs)
            grad_total = None if self._pre else self._workspace.get(f"grad_total.{layer}", tuple(x.shape), x)
            through = x if self._pre else chunk.value(f"{self.name}.total")[layer]
            self.prepared.append(PreparedNorm(through, mean, rstd, grad_input, grad_total))
            self.ops.prepare(layer, inputs, chunk)

    def split(self, chunk: Chunk) -> None:
        """Splits the prepared chunk into its steps."""
        self._steps = [
            list(
                zip(
                    *(part.split(chunk.counts) for part in prepared if part is not None),
                    strict=True,
                )
            )
            for prepared in self.prepared
        ]
        self.ops.split(chunk)

    def step_backward(self, layer: int, index: int, grad: Tensor, window: Window, out: Tensor) -> Tensor:
        """Writes the gradient (R, D) of the states before the sub-layer into `out`, from that of the states after."""
        norm = self.norms[layer]
        x, mean, rstd, grad_input, *rest = self._steps[layer][index]
        if self._pre:
            self.ops.step_backward(layer, index, grad, window, grad_input)
            return torch.add(grad, norm.step_backward(grad_input.to(grad.dtype), x, mean, rstd), out=out)
        total = rest[0].copy_(norm.step_backward(grad, x, mean, rstd))
        return torch.add(total, self.ops.step_backward(layer, index, total, window, grad_input), out=out)

    def accumulate(self, chunk: Chunk) -> None:
        """Adds a chunk's parameter gradients in all layers."""
        for layer, (norm, prepared) in enumerate(zip(self.norms, self.prepared, strict=True)):
            grad = chunk.grad_output(self.name, layer)
            if prepared.grad_total is None:
                self.ops.accumulate(layer, grad, chunk)
                norm.accumulate(prepared.grad_input, prepared.x, prepared.mean, prepared.rstd)
            else:
                self.ops.accumulate(layer, prepared.grad_total, chunk)
                norm.accumulate(grad, prepared.x, prepared.mean, prepared.rstd)
