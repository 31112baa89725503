"""One update of the weights at a time, by truncated backpropagation through time."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from ...data import Blocks, TokenBlock
from ...layers.span import AdaptiveSpan
from ...model import FeedbackTransformer
from ...recurrence import describe_walk
from ..models.architectures import LanguageModel
from ..objective import Objective
from ..options import TrainOptions
from ..processes import Processes, gradients_shared
from .memories import CarriedMemory, is_finite, join, pack, unpack, without_slots
from .optimizer import build_optimizer, learning_rate

# Full tensors, even if a process holds only parts of them: in all processes, or on the CPU of the main process.
_FULL = StateDictOptions(full_state_dict=True)
_TO_SAVE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Step:
    """The result of one update.

    Attributes:
        update: the number of the update, counted from 1.
        loss: nats per counted target before the update, over all processes, without the loss of adaptive spans.
        grad_norm: norm of the gradient before clipping.
        lr: the learning rate used.
        skipped: the loss or the gradient was not finite, so the weights did not change.
        tokens: tokens read, in all processes.
        block_len: tokens of a row.
        metrics: values of the objective's metrics before the update, over all processes.
    """

    update: int
    loss: float
    grad_norm: float
    lr: float
    skipped: bool
    tokens: int
    block_len: int
    metrics: Mapping[str, float]


class Trainer:
    """A model in training, and the state that its next update depends on.

    This state is the weights, the optimizer, `update`, `memories` and, for dropout, torch's global random state.

    Attributes:
        update: the number of updates done.
        memories: the memory of each group of rows after the last update; None if the next block does not need it.

    Args:
        model: a model on the CPU with its initial weights, which are the same in every process.
        blocks: the rows that this process owns.
    """

    def __init__(
        self, options: TrainOptions, model: LanguageModel, blocks: Blocks, objective: Objective, processes: Processes
    ) -> None:
        self.model = model
        _freeze_unused(model)
        self._options, self._blocks, self._objective, self._processes = options, blocks, objective, processes
        self._wrapped = processes.wrap(model, options.strategy)
        self._optimizer = build_optimizer(model, lr=options.lr, weight_decay=options.weight_decay)
        self._forward: Any = torch.compile(self._wrapped) if options.compile else self._wrapped
        self.update = 0
        self.memories: list[CarriedMemory] | None = None
        self._seed()

    def step(self) -> Step:
        """One update: reads the next block, starting from the memory of the block before, and changes the weights.

        If the loss or the gradient is not finite, it skips the change and empties each memory with such numbers.
        """
        block = self._blocks.block(self.update)
        lr = self._learning_rate()
        losses = []
        sums: dict[str, list[Tensor]] = {}
        memories: list[CarriedMemory] = []
        groups = block.groups(self._options.accumulate)
        counted = self._processes.sum(self._count(block.targets))
        for place, group in enumerate(groups):
            before = None if block.restarts or self.memories is None else self.memories[place]
            with gradients_shared(self._wrapped, now=place == len(groups) - 1):
                loss, memory, found = self._read(group, before)
                loss = loss * self._weight(group, len(groups), counted)
                ((loss + self._span_loss()) / len(groups)).backward()
            losses.append(loss.detach())
            memories.append(memory.detach())
            for name, value in found.items():
                sums.setdefault(name, []).append(value)
        added = [torch.stack(values).sum().float() for values in sums.values()]
        means = self._processes.mean(torch.stack([torch.stack(losses).mean(), *added]))
        norm = torch.nn.utils.clip_grad_norm_(self._wrapped.parameters(), self._options.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # This line waits for the device, as the model's `check_tokens` does on CUDA.
        loss, *totals, grad_norm = torch.cat([means, norm[None]]).tolist()
        skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
        if not skipped:
            self._optimizer.step()
            self._clamp_spans()
        else:
            memories = [memory if is_finite(memory) else without_slots(memory) for memory in memories]
        self._optimizer.zero_grad()
        self.memories = memories if block.continues else None
        self.update += 1
        metrics = self._objective.values(loss, dict(zip(sums, totals, strict=True)))
        block_len = block.inputs.shape[1]
        return Step(self.update, loss, grad_norm, lr, skipped, self._blocks.batch_size * block_len, block_len, metrics)

    @property
    def rows(self) -> range:
        """The numbers of the streams that this process owns."""
        return self._blocks.rows

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context with the arithmetic of `--precision`."""
        bf16 = self._options.precision == "bf16"
        return torch.autocast(self._processes.device.type, torch.bfloat16, enabled=bf16)

    def layer_weights(self) -> dict[str, list[float]]:
        """The weights (L+1,) by which the memory mixes the layers, as `layer_weights`; {} for a model without a mix.

        All processes must call it together.
        """
        if not isinstance(self.model, FeedbackTransformer) or self.model.config.stored != "mix":
            return {}
        return {"layer_weights": _full(self.model.decoder.stack.layer_weight).softmax(0).tolist()}

    def mean_span(self) -> dict[str, float]:
        """How many tokens back heads attend, on average, as `mean_span`; {} for a model without adaptive spans.

        All processes must call it together.
        """
        spans = self._spans()
        if not spans:
            return {}
        return {"mean_span": torch.stack([_full(span.loss()) for span in spans]).mean().item()}

    def walk(self) -> str | None:
        """Which implementation computes the recurrence; None for a model without one.

        It is "the definition", or the result of `describe_walk` for a block of full length.
        """
        if not isinstance(self.model, FeedbackTransformer):
            return None
        if self.model.implementation == "stepwise":
            return "the definition"
        dtype, rows = next(self.model.parameters()).dtype, len(self.rows) // self._options.accumulate
        shape = (rows, self._options.block_len, self._options.dim)
        with self.autocast():
            x = torch.empty(1, dtype=dtype, device=self._processes.device).expand(shape)
            return describe_walk(self.model.decoder.stack, x)

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, on the CPU. All processes must call it together; only the main process gets them."""
        found: dict[str, Any] = get_model_state_dict(self._wrapped, options=_TO_SAVE)
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state, on the CPU. All processes must call it together; only the main process gets it."""
        if not self._optimizer.state:
            return {}
        found: Any = get_optimizer_state_dict(self._wrapped, self._optimizer, options=_TO_SAVE)
        return {
            f"{parameter}/{name}": tensor.contiguous()
            for parameter, held in found.get("state", {}).items()
            for name, tensor in held.items()
        }

    def streams_state(self) -> dict[str, Tensor]:
        """The memories of the streams that this process owns, and its random state."""
        memories = {} if self.memories is None else pack(self.memories)
        return {**{f"memory.{name}": tensor for name, tensor in memories.items()}, **_random_state()}

    def restore(
        self,
        update: int,
        weights: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        streams_states: Mapping[range, Mapping[str, Tensor]],
    ) -> None:
        """Restores the state of another trainer with the same options after `update` updates.

        Args:
            weights, optimizer_state: results of its `weights` and `optimizer_state`.
            streams_states: the result of `streams_state` in each of its processes, by the streams of the process.

        Raises:
            ValueError, KeyError: the state belongs to other options.
        """
        set_model_state_dict(self._wrapped, dict(weights), options=_FULL)
        if optimizer_state:
            full: Any = get_optimizer_state_dict(self._wrapped, self._optimizer, options=_FULL)
            for key, tensor in optimizer_state.items():
                parameter, name = key.rsplit("/", 1)
                expected = full["state"][parameter][name].shape
                if tensor.shape != expected:
                    raise ValueError(f"{key} is {tuple(tensor.shape)}, not {tuple(expected)}")
                full["state"][parameter][name] = tensor
            set_optimizer_state_dict(self._wrapped, self._optimizer, full, options=_FULL)
        self.update = update
        self._restore_streams(streams_states)

    def _restore_streams(self, states: Mapping[range, Mapping[str, Tensor]]) -> None:
        rows = self._blocks.rows
        ordered = [(owned, states[owned]) for owned in sorted(states, key=lambda owned: owned.start)]
        if sum(len(owned) for owned, _ in ordered) != self._blocks.batch_size:
            raise ValueError(f"streams {[owned for owned, _ in ordered]} are not {self._blocks.batch_size}")
        memories = join([_part(state, "memory.") for _, state in ordered])
        own = {name: tensor[rows.start : rows.stop] for name, tensor in memories.items()}
        self.memories = unpack(own, self._options.accumulate, self._processes.device) if own else None
        if rows in states:
            _set_random_state(states[rows])
        else:  # the number of processes changed, so none of the random states belongs to this one
            self._seed()

    def _seed(self) -> None:
        """Seeds torch by update and process: neither two processes nor two starts draw the same numbers."""
        numbers = (self._options.seed, self.update, self._processes.rank)
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7]))

    def _learning_rate(self) -> float:
        """Sets the optimizer's learning rate for the next update, and returns it."""
        lr = learning_rate(
            self.update,
            peak=self._options.lr,
            warmup_updates=self._options.warmup_updates,
            max_updates=self._options.max_updates,
            decay=self._options.lr_decay,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _spans(self) -> list[AdaptiveSpan]:
        return [module for module in self.model.modules() if isinstance(module, AdaptiveSpan)]

    def _span_loss(self) -> Tensor | float:
        """What training adds to the loss for adaptive spans. It belongs between a forward pass and its backward pass,
        where every process has all weights."""
        if not isinstance(self.model, FeedbackTransformer) or not self.model.config.adaptive_span:
            return 0.0
        return self._options.span_loss * self.model.span_loss()

    @torch.no_grad()
    def _clamp_spans(self) -> None:
        """Keeps adaptive spans between none and all of the memory."""
        for span in self._spans():
            span.ratio.clamp_(0, 1)

    def _count(self, targets: Tensor) -> int:
        return int(self._objective.mask(targets).sum())

    def _weight(self, group: TokenBlock, groups: int, counted: int) -> float:
        """The weight of a group's mean loss, so that the mean over all groups and processes is one over all targets.

        Args:
            counted: how many targets count in all groups of all processes.
        """
        return self._count(group.targets) * groups * self._processes.count / max(1, counted)

    def _read(self, block: TokenBlock, memory: CarriedMemory | None) -> tuple[Tensor, CarriedMemory, dict[str, Tensor]]:
        """The loss of a block, the memory after it, and what the objective measures."""
        device = self._processes.device
        reset = {} if block.reset is None else {"reset": block.reset.to(device)}
        with self.autocast():
            logits, memory = self._forward(block.inputs.to(device), memory, return_memory=True, **reset)
        targets = block.targets.to(device)
        found = self._objective.measure(logits, targets)
        if block.continues:  # a row is a part of a stream, so sums over rows mean nothing
            found = {name: values for name, values in found.items() if values.ndim == 2}
        return self._objective.loss(logits, targets), memory, found


def _freeze_unused(model: LanguageModel) -> None:
    """Excludes from training what nothing depends on: DDP would wait for its gradients."""
    if isinstance(model, FeedbackTransformer) and model.config.stored != "mix":
        model.decoder.stack.layer_weight.requires_grad_(False)


def _full(tensor: Tensor) -> Tensor:
    """A tensor without its gradient, whole even if a process holds only a part of it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _random_state() -> dict[str, Tensor]:
    state = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random.cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in state:
        torch.cuda.set_rng_state(state["random.cuda"])
