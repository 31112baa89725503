"""Prompts, which may have different lengths, as one tensor with padding on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..checks import check_flags
from ..errors import InputError

Prompt: TypeAlias = Tensor | Sequence[Tensor]


class Prompts(NamedTuple):
    """What rows start with.

    Attributes:
        tokens: (B, n), each row's at its end; padding before them is 0.
        lengths: (B,), how many tokens each row has, at least one.
    """

    tokens: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, prompt: Prompt, mask: Tensor | None = None) -> Prompts:
        """Checks what a caller gave.

        Args:
            prompt: (B, n) tokens, or B tensors (n_b,).
            mask: (B, n) bool, True at a real token, wherever the padding stands; only for a tensor.

        Raises:
            InputError: it is neither, a row has no token, or the mask does not fit.
        """
        if isinstance(prompt, Tensor):
            if prompt.ndim != 2 or not prompt.numel():
                raise InputError(f"prompt is {tuple(prompt.shape)}; it must be (batch >= 1, n >= 1), or a list of rows")
            if mask is None:
                return cls(prompt, torch.full((len(prompt),), prompt.shape[1], device=prompt.device))
            check_flags("prompt_mask", mask, prompt.shape, prompt.device)
            rows = [row[real] for row, real in zip(prompt, mask, strict=True)]
        else:
            if not isinstance(prompt, Sequence) or not all(isinstance(row, Tensor) for row in prompt):
                raise InputError(
                    f"prompt is {_kind(prompt)}; it must be a tensor of tokens (batch >= 1, n >= 1), or a list of "
                    "tensors (n >= 1,)"
                )
            rows = list(prompt)
            if mask is not None:
                raise InputError("prompt_mask is given with a list of prompts, which have no padding; leave it out")
            if not rows or any(row.ndim != 1 for row in rows):
                shapes = [tuple(row.shape) for row in rows]
                raise InputError(f"prompt is a list of {shapes}; it must hold one or more tensors (n >= 1,)")
        empty = [number for number, row in enumerate(rows) if not len(row)]
        if empty:
            raise InputError(f"prompt {empty[0]} has no tokens; give each at least one")
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        return cls(pad_sequence(rows, batch_first=True, padding_side="left"), lengths)

    @property
    def mask(self) -> Tensor | None:
        """(B, n) bool, True at a real token; None where all are."""
        longest = self.tokens.shape[1]
        if bool((self.lengths == longest).all()):
            return None
        return torch.arange(longest, 0, -1, device=self.tokens.device) <= self.lengths[:, None]

    def select(self, rows: Tensor) -> Prompts:
        """The prompts of rows (B',) named by index, with no more padding than they need."""
        lengths = self.lengths.index_select(0, rows)
        return Prompts(self.tokens.index_select(0, rows)[:, -int(lengths.max()) :], lengths)


def _kind(given: object) -> str:
    """What a caller gave in place of tensors."""
    if isinstance(given, list | tuple):
        kinds = sorted({type(row).__name__ for row in given})
        return f"a {type(given).__name__} of {' and '.join(kinds)}"
    return f"a {type(given).__name__}"
