"""How the next token is drawn from logits: filters as functions on logits (B, V), and their composition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..checks import check_count
from ..errors import InputError

_COLDEST = 1e-9  # logits divided by less could become infinite

# One source of random numbers for all rows, one for each row, or torch's global one.
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divides positive logits (B, V) of `seen` (B, V) bool tokens by the penalty, and multiplies negative ones by it.

    So a penalty above 1 makes them less likely (Keskar et al. 2019, arXiv 1909.05858, section 4.1, which divides both;
    a negative logit would grow by it).
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with -inf for all but the k likeliest tokens (Fan et al. 2018, arXiv 1805.04833)."""
    least = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with -inf for all but the likeliest tokens whose probabilities just reach p (Holtzman et al. 2020,
    arXiv 1904.09751)."""
    ranked, order = logits.softmax(-1).sort(descending=True)
    beyond = ranked.cumsum(-1) - ranked >= p
    return logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with -inf for tokens less likely than p times the likeliest (Nguyen et al. 2024, arXiv 2407.01082,
    section 3)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), float("-inf"))


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. What is given applies in this order: repetition penalty, temperature, top k, top p,
    min p.

    Attributes:
        temperature: divides the logits; 0, or less than 1e-9, takes the likeliest token.
        top_k, top_p, min_p: see `keep_top_k`, `keep_top_p`, `keep_min_p`; None for all tokens.
        repetition_penalty: see `penalize_repetition`; 1 for none.

    Raises:
        InputError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; it must be at least 0 and finite")
        if self.top_k is not None:
            check_count("top_k", self.top_k, 1)
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} is {value}; it must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 and finite")

    def draw(self, logits: Tensor, generator: Generators = None, seen: Tensor | None = None) -> Tensor:
        """One token (B,) from logits (B, V).

        Args:
            generator: the source of randomness; a sequence has one for each row, whose tokens then do not depend on
                the other rows.
            seen: (B, V) bool, the tokens of each row's text so far; None for none.
        """
        if seen is not None and self.repetition_penalty != 1:
            logits = penalize_repetition(logits, seen, self.repetition_penalty)
        if self.temperature < _COLDEST:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        probabilities = logits.softmax(-1)
        if generator is None or isinstance(generator, torch.Generator):
            return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        rows = zip(probabilities, generator, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=each) for row, each in rows])
