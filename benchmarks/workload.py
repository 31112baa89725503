"""One update's work: random tokens read with a full memory, the loss, and its gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from contestants import build
from shapes import Shape

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Workload:
    """A contestant with its input.

    The memory is what the contestant itself left after reading M other tokens, so that every step has a window of
    full size and every number is like a real one.
    """

    def __init__(self, contestant: str, shape: Shape, precision: str, device: str) -> None:
        torch.manual_seed(0)
        self.device, self.dtype = device, PRECISIONS[precision]
        self.model = build(contestant, shape).to(device)
        size = (shape.batch, shape.mem_len + shape.time)
        before, self.tokens = torch.randint(shape.num_tokens, size, device=device).split([shape.mem_len, shape.time], 1)
        self.targets = torch.randint(shape.num_tokens, self.tokens.shape, device=device)
        self.memory: Any = None
        self.warm_up()
        with torch.no_grad(), self._precision():
            _, self.memory = self.model(before, return_memory=True)

    def warm_up(self) -> None:
        """Forward and backward over a few tokens of one row, without memory."""
        with self._precision():
            self.model(self.tokens[:1, :4]).float().square().mean().backward()
        self.model.zero_grad()

    def forward(self) -> None:
        """What evaluation does: nothing is kept for a backward pass."""
        with torch.no_grad(), self._precision():
            self.model(self.tokens, self.memory, return_memory=True)

    def forward_backward(self) -> None:
        """What an update does, up to the gradients."""
        with self._precision():
            logits, _ = self.model(self.tokens, self.memory, return_memory=True)
            loss = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        loss.backward()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)
