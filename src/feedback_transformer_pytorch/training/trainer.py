"""One update of the weights at a time, by truncated backpropagation through time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..baselines import HiddenMemory
from ..data import Streams
from ..errors import InputError, MissingExtraError
from ..memory import Memory
from .architectures import build_model
from .optimizer import build_optimizer, learning_rate
from .options import TrainOptions

try:
    from accelerate import Accelerator
except ImportError as error:
    raise MissingExtraError("accelerate", "train") from error


@dataclass(frozen=True)
class Step:
    """What one update did.

    Attributes:
        update: its number, counted from 1.
        loss: nats per token before the update, a scalar on the device.
        grad_norm: before clipping, a scalar on the device.
        lr: the learning rate used.
    """

    update: int
    loss: Tensor
    grad_norm: Tensor
    lr: float


class Trainer:
    """A model in training, and all that its next update depends on: the weights, the optimizer, `update`, the number
    of updates done, and `memory`, which the last one left. Dropout draws from torch's global random state.

    Raises:
        InputError: the model cannot be built, or more than one process was launched.
    """

    def __init__(self, options: TrainOptions, streams: Streams, num_tokens: int) -> None:
        self.accelerator = Accelerator(mixed_precision="bf16" if options.precision == "bf16" else "no")
        if self.accelerator.num_processes > 1:
            raise InputError(f"{self.accelerator.num_processes} processes were launched; training takes one")
        torch.manual_seed(options.seed)
        self.model = build_model(options, num_tokens)
        optimizer = build_optimizer(self.model, lr=options.lr, weight_decay=options.weight_decay)
        self._wrapped, self._optimizer = self.accelerator.prepare(self.model, optimizer)
        self._options = options
        self._streams = streams
        self.update = 0
        self.memory: Memory | HiddenMemory | None = None

    def step(self) -> Step:
        """One update: reads a block from the memory that the block before left, and learns from it."""
        block = self._streams.block(self.update)
        inputs, targets = (tokens.to(self.accelerator.device) for tokens in (block.inputs, block.targets))
        lr = learning_rate(
            self.update,
            peak=self._options.lr,
            warmup_updates=self._options.warmup_updates,
            max_updates=self._options.max_updates,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        logits, memory = self._wrapped(inputs, None if block.restarts else self.memory, return_memory=True)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.accelerator.backward(loss)
        grad_norm = self.accelerator.clip_grad_norm_(self._wrapped.parameters(), self._options.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.memory = memory.detach()
        self.update += 1
        return Step(self.update, loss.detach(), grad_norm, lr)
