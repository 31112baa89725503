"""Where a row's text ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError


class Stopping:
    """Finds the rows whose newest tokens are one of some stop sequences.

    Args:
        stop: sequences of tokens.
        end_of_text: a token that is a stop sequence by itself; None for none.

    Raises:
        InputError: a stop sequence is empty, or none.
    """

    def __init__(self, stop: Sequence[Sequence[int]] = (), end_of_text: int | None = None) -> None:
        try:
            found = [[int(token) for token in sequence] for sequence in stop]
        except (TypeError, ValueError):
            raise InputError(f"stop is {stop!r}; it must be sequences of tokens, such as [[46, 32]]") from None
        if not all(found):
            raise InputError(f"stop has an empty sequence (number {found.index([])}); give each at least one token")
        self.sequences = [tuple(sequence) for sequence in found]
        if end_of_text is not None:
            self.sequences.append((int(end_of_text),))

    @property
    def longest(self) -> int:
        """The length of the longest stop sequence, if there is one."""
        return max(map(len, self.sequences))

    @property
    def last_tokens(self) -> set[int]:
        """The tokens that stop sequences end with."""
        return {sequence[-1] for sequence in self.sequences}

    def ends(self, text: Tensor) -> Tensor:
        """(B,) bool, whether text (B, n) ends with a stop sequence."""
        found = torch.zeros(text.shape[0], dtype=torch.bool, device=text.device)
        for sequence in self.sequences:
            if len(sequence) <= text.shape[1]:
                found |= (text[:, -len(sequence) :] == text.new_tensor(sequence)).all(1)
        return found
