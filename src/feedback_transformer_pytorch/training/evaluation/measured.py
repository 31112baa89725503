"""What an objective measures of a model that reads rows of tokens. R rows, N tokens, P positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..objective import Objective
from .reading import read_rows

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Measured:
    """Sums over targets, so that parts can be added.

    Attributes:
        objective: what measured them.
        nats: the loss of all targets that count.
        targets: how many count.
        sums: what `Objective.values` takes.
        at_positions: (P,) those of the sums that are of targets, at each position; {} without positions.
    """

    objective: Objective
    nats: float
    targets: int
    sums: Mapping[str, float]
    at_positions: Mapping[str, Integers]

    def __add__(self, other: Measured) -> Measured:
        """Both parts together."""
        return Measured(
            self.objective,
            self.nats + other.nats,
            self.targets + other.targets,
            {name: value + other.sums[name] for name, value in self.sums.items()},
            {name: _added(value, other.at_positions[name]) for name, value in self.at_positions.items()},
        )

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nats / self.targets

    @property
    def values(self) -> dict[str, float]:
        """The metrics by name."""
        return self.objective.values(self.loss, self.sums)

    @property
    def by_position(self) -> list[float | None] | None:
        """The first metric at each position, None where it has no value; None without positions."""
        if not self.at_positions:
            return None
        name = self.objective.metrics[0].name
        sums = zip(*(values.tolist() for values in self.at_positions.values()), strict=True)
        # The loss at a position is not known.
        return [self.objective.values(math.nan, dict(zip(self.at_positions, at, strict=True))).get(name) for at in sums]


@torch.no_grad()
def measure_rows(
    model: nn.Module,
    objective: Objective,
    tokens: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    *,
    block_len: int,
    lead: int = 0,
    whole_rows: bool = False,
    positions: npt.NDArray[np.int64] | None = None,
    resets: npt.NDArray[np.bool_] | None = None,
    after_block: Callable[[int], None] | None = None,
) -> Measured:
    """What an objective measures of the targets of rows, block by block, with the memory carried.

    Args:
        model: a model with the interface that `build_model` describes. Its training mode is restored afterwards.
        tokens, targets: (R, N) integers.
        block_len: tokens of a row in one call of the model, a multiple of its `seq_len`.
        lead: targets at the start of each row that are not counted.
        whole_rows: each row is a sequence that one block reads, not a part of a stream, so sums over rows count too.
        positions: (R, N), the position of each target; gives sums at each.
        resets: (R, N), True at tokens before which the memory is emptied.
        after_block: called after each block with the number of tokens in it.
    """
    nats = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    counted, found = 0, dict[str, list[Tensor]]()
    at_positions, size = dict[str, Integers](), 0 if positions is None else int(positions.max()) + 1
    for places, logits in read_rows(model, tokens, block_len=block_len, resets=resets):
        if after_block is not None:
            after_block(logits.shape[0] * logits.shape[1])
        read = slice(max(places.start, lead), places.stop)
        if read.start >= read.stop:
            continue
        block, logits = torch.from_numpy(targets[:, read].astype(np.int64)), logits[:, read.start - places.start :]
        counted += int(objective.mask(block).sum())
        block = block.to(logits.device)
        nats += objective.nats(logits, block)
        for name, values in objective.measure(logits, block).items():
            if values.ndim == 1 and not whole_rows:
                continue
            found.setdefault(name, []).append(values.sum())
            if values.ndim == 2 and positions is not None:
                at = at_positions.setdefault(name, np.zeros(size, np.int64))
                np.add.at(at, positions[:, read], values.cpu().numpy())
    sums = {name: int(torch.stack(values).sum()) for name, values in found.items()}
    return Measured(objective, nats.item(), counted, sums, at_positions)


def _added(one: Integers, other: Integers) -> Integers:
    """The sum of both, of which one may be shorter."""
    short, long = sorted((one, other), key=len)
    return long + np.pad(short, (0, len(long) - len(short)))
