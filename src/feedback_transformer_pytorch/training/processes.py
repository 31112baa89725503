"""The processes that train one model together.

All methods but `rows` are collective: all processes must call them at the same point. With one process they cost
nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from ..errors import InputError, MissingExtraError
from .options import Strategy

try:
    from accelerate import Accelerator, DistributedType
    from accelerate.utils import InitProcessGroupKwargs, gather_object
except ImportError as error:
    raise MissingExtraError("accelerate", "train") from error

T = TypeVar("T")

TIMEOUT = timedelta(hours=6)  # the other processes wait while the main process tokenizes a large text


class Processes:
    """The processes that `torchrun` or `accelerate launch` started, or this one alone. A context manager.

    Attributes:
        accelerator: Accelerate's view of them.
        device: the device of this process.
        rank: the number of this process.
        count: the number of processes.

    Raises:
        InputError: Accelerate is configured for anything but plain processes.
    """

    def __init__(self, trackers: Sequence[str] = (), folder: str = ".") -> None:
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",  # --precision decides, not Accelerate's configuration
            dynamo_backend="no",
            log_with=list(trackers) or None,
            project_dir=folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
        )
        self.device: torch.device = self.accelerator.device
        kind = self.accelerator.distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise InputError(
                f"Accelerate is configured for {kind.value}; configure it for plain processes (`accelerate config`), "
                "or use torchrun, and give --strategy fsdp to shard the model"
            )
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # If a process ends with open connections, their threads may abort it. After an error the connections stay
        # open: the other processes may be inside a collective call, and closing would wait for them.
        if self.count > 1 and kind is None and torch.distributed.is_initialized():
            # The wrapped model must be freed first. If it released the group last, it would hold the interpreter's
            # lock while it waits for the group's thread, which may need that lock.
            self.accelerator.free_memory()
            torch.distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and reports for all processes."""
        return self.rank == 0

    def rows(self, batch_size: int, accumulate: int) -> range:
        """Those of the `batch_size` streams that this process owns, in `accumulate` groups.

        Raises:
            InputError: the streams cannot be split evenly.
        """
        if batch_size % (self.count * accumulate):
            raise InputError(
                f"--batch-size is {batch_size}; it must be a multiple of {self.count} processes x "
                f"--accumulate {accumulate}, so that all groups have the same number of streams"
            )
        own = batch_size // self.count
        return range(self.rank * own, (self.rank + 1) * own)

    def wrap(self, model: nn.Module, strategy: Strategy) -> nn.Module:
        """Moves the model to the device and lets its backward pass average gradients over all processes."""
        if strategy == "fsdp" and self.count > 1:
            model.to(self.device)
            fully_shard(model)
            return model
        return self.accelerator.prepare_model(model)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        return bool(self.accelerator.reduce(votes, "sum").item())

    def sum(self, value: int) -> int:
        """The total over all processes."""
        if self.count == 1:
            return value
        return int(self.accelerator.reduce(torch.tensor(value, device=self.device), "sum").item())

    def mean(self, value: Tensor) -> Tensor:
        """The average over all processes."""
        return value if self.count == 1 else self.accelerator.reduce(value, "mean")

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order."""
        return [value] if self.count == 1 else gather_object([value])

    def on_all_ranks(self, action: Callable[[], T]) -> list[T]:
        """Runs `action` in every process; returns all results. If one raises an InputError, all processes raise it."""
        result: T | None = None
        failure = None
        try:
            result = action()
        except InputError as error:
            failure = str(error)
        outcomes = self.gather((result, failure))
        for _, message in outcomes:
            if message is not None:
                raise InputError(message)
        return [outcome for outcome, _ in outcomes]  # type: ignore[misc]

    def on_main_rank(self, action: Callable[[], T]) -> T:
        """Runs `action` in the main process only. All processes return its result, or raise its InputError."""
        return self.on_all_ranks(lambda: action() if self.is_main else None)[0]  # type: ignore[return-value]

    def on_each_rank(self, action: Callable[[], T]) -> T:
        """Runs `action` in every process; returns the result of this one. If one raises an InputError, all raise it."""
        results: list[T] = []
        self.on_all_ranks(lambda: results.append(action()))
        return results[0]

    def main_rank_first(self, action: Callable[[], T]) -> T:
        """As `on_each_rank`, but the main process runs `action` before the others."""
        results: list[T] = []
        self.on_main_rank(lambda: results.append(action()))
        self.on_all_ranks(lambda: None if results else results.append(action()))
        return results[0]


@contextlib.contextmanager
def gradients_shared(wrapped: nn.Module, now: bool) -> Iterator[None]:
    """In this context, a backward pass averages gradients over all processes only if `now`."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(now)
        yield
    elif isinstance(wrapped, nn.parallel.DistributedDataParallel) and not now:
        with wrapped.no_sync():
            yield
    else:
        yield
