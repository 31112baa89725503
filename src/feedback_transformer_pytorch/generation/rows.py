"""Rows of different lengths, each read as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..baselines import HiddenMemory
from ..errors import InputError
from ..memory import AnyMemory, Memory, StateMemory
from ..recurrence import select_rows
from .prompts import Prompts
from .reader import Model, Reader, ReaderState


class Group(NamedTuple):
    """Rows whose segments end together.

    Attributes:
        rows: (B',), which of the batch they are.
    """

    rows: Tensor
    reader: Reader


class RowsReader:
    """Reads rows of different lengths, with a `Reader` for all rows whose segments end together: at most S of them,
    and a single one where segments have one token, or rows one length. With carry="normed_state", one for each length.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)

    @classmethod
    def start(
        cls,
        model: Model,
        prompts: Prompts,
        memory: AnyMemory | HiddenMemory | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> tuple[Self, Tensor]:
        """Reads the prompts; returns the reader and the logits (B, V) after each.

        Args:
            memory, context, context_mask: as for `Reader`.

        Raises:
            InputError: a token is out of range, or the memory or the context does not fit.
        """
        kinds = prompts.lengths
        if model.config.carry != "normed_state":  # such states are normed again by the walk behind a padded prompt
            kinds = kinds % model.config.seq_len
        groups, found, unique = [], [], kinds.unique()
        if len(unique) > 1:
            check_rows(len(kinds), memory, context, context_mask)
        for kind in unique:
            rows = (kinds == kind).nonzero()[:, 0]
            every = len(rows) == len(kinds)
            part = prompts if every else prompts.select(rows)
            reader = Reader(
                model,
                memory if every or memory is None else memory.select(rows),
                context=context if every else select_rows(context, rows),
                context_mask=context_mask if every else select_rows(context_mask, rows),
            )
            groups.append(Group(rows, reader))
            found.append(reader.read(part.tokens, part.mask))
        return cls(groups), _gather(groups, found)

    @classmethod
    def resume(
        cls,
        model: Model,
        states: Sequence[tuple[Tensor, ReaderState]],
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Self:
        """Goes on from `states`."""
        groups = []
        check_rows(sum(len(rows) for rows, _ in states), None, context, context_mask)
        for rows, state in states:
            context_of, mask_of = select_rows(context, rows), select_rows(context_mask, rows)
            groups.append(Group(rows, Reader(model, state, context=context_of, context_mask=mask_of)))
        return cls(groups)

    def read(self, tokens: Tensor) -> Tensor:
        """Reads tokens (B, n >= 1); returns the logits (B, V) after the last."""
        return _gather(self.groups, [reader.read(tokens.index_select(0, rows)) for rows, reader in self.groups])

    @property
    def states(self) -> list[tuple[Tensor, ReaderState]]:
        """The rows (B',) of each group, and what was read of them."""
        return [(rows, reader.state) for rows, reader in self.groups]


def _gather(groups: Sequence[Group], found: Sequence[Tensor]) -> Tensor:
    """What was found of each group, (B', V), in the order of the batch: (B, V)."""
    if len(groups) == 1:
        return found[0]
    return torch.cat(list(found))[torch.cat([rows for rows, _ in groups]).argsort()]


def check_rows(
    count: int, memory: AnyMemory | HiddenMemory | None, context: Tensor | None, context_mask: Tensor | None
) -> None:
    """Raises InputError unless what is given has a row for each of `count` texts, from which some can be chosen."""
    given = {"context": context, "context_mask": context_mask}
    if isinstance(memory, Memory):
        given["memory"] = memory.keys
    elif isinstance(memory, StateMemory | HiddenMemory):
        given["memory"] = memory.states
    elif memory is not None:
        raise InputError(f"memory is a {type(memory).__name__}; give what a call of the model returned")
    for name, tensor in given.items():
        if tensor is not None and len(tensor) != count:
            raise InputError(f"{name} has {len(tensor)} rows for {count} texts; give one for each")
