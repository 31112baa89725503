"""Several processes that train one model: what they agree on, and what each of them alone does.

Methods that return or do something for all are collective: all processes call them at the same place. With one process
they cost nothing.
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

PATIENCE = timedelta(hours=6)  # the others wait while the main process makes tokens of a large text


class Processes:
    """The processes of a run, as `torchrun` or `accelerate launch` started them; otherwise one. Enter it to use it.

    Attributes:
        accelerator: Accelerate's view of them.
        device: what this one computes on.
        rank: this one's number.
        count: how many they are.

    Raises:
        InputError: Accelerate is set up for something else than plain processes.
    """

    def __init__(self, trackers: Sequence[str] = (), folder: str = ".") -> None:
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no",  # whatever Accelerate is set up for: --precision says it
            dynamo_backend="no",
            log_with=list(trackers) or None,
            project_dir=folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self.device: torch.device = self.accelerator.device
        kind = self.accelerator.distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise InputError(
                f"Accelerate is set up for {kind.value}; set it up for plain processes (`accelerate config`, or "
                "torchrun), and give --strategy fsdp to shard the model"
            )
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A process that ends with its connections open may be aborted by their threads. After an error the others
        # may be waiting in the middle of something, and closing would wait for them.
        if self.count > 1 and kind is None and torch.distributed.is_initialized():
            # The wrapped model goes first: were it to drop the group last, it would wait for the group's thread while
            # holding the interpreter's lock, which that thread may need.
            self.accelerator.free_memory()
            torch.distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this one reports and writes what is common to all."""
        return self.rank == 0

    def rows(self, batch_size: int, accumulate: int) -> range:
        """The streams that this process owns, of `batch_size`, in `accumulate` groups.

        Raises:
            InputError: they cannot be divided evenly.
        """
        if batch_size % (self.count * accumulate):
            raise InputError(
                f"--batch-size is {batch_size}; it must be a multiple of {self.count} processes x "
                f"--accumulate {accumulate}, so that all groups have equally many streams"
            )
        own = batch_size // self.count
        return range(self.rank * own, (self.rank + 1) * own)

    def wrap(self, model: nn.Module, strategy: Strategy) -> nn.Module:
        """The model on its device, ready to average gradients over all processes."""
        if strategy == "fsdp" and self.count > 1:
            model.to(self.device)
            fully_shard(model)
            return model
        return self.accelerator.prepare_model(model)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        return bool(self.accelerator.reduce(votes, "sum").item())

    def mean(self, value: Tensor) -> Tensor:
        """The average over all processes."""
        return value if self.count == 1 else self.accelerator.reduce(value, "mean")

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order."""
        return [value] if self.count == 1 else gather_object([value])

    def on_all_ranks(self, action: Callable[[], T]) -> list[T]:
        """What `action` returns in each process; if it fails in any, all raise that InputError."""
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

    def main_rank_first(self, action: Callable[[], T]) -> T:
        """Lets the main process act while the others wait; all get what it returns, or the InputError it raises."""
        return self.on_all_ranks(lambda: action() if self.is_main else None)[0]  # type: ignore[return-value]


@contextlib.contextmanager
def gradients_shared(wrapped: nn.Module, now: bool) -> Iterator[None]:
    """Within it, a backward pass averages gradients over all processes only if `now`."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(now)
        yield
    elif isinstance(wrapped, nn.parallel.DistributedDataParallel) and not now:
        with wrapped.no_sync():
            yield
    else:
        yield
