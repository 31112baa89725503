"""Beam search: the likeliest continuations, by keeping the best few at every token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..baselines import HiddenMemory
from ..checks import check_count
from ..errors import InputError
from ..memory import AnyMemory
from ..recurrence import select_rows
from .prompts import Prompt, Prompts
from .reader import Model, Reader, check_model
from .rows import check_rows
from .stopping import Stopping


@dataclass(frozen=True)
class Hypothesis:
    """A continuation that a beam search found.

    Attributes:
        tokens: (n,), with those that ended it.
        log_probability: the sum over its tokens.
        score: what the search maximises, log_probability / n ** length_penalty.
        ended: whether it came to a stop sequence or the end of text.
    """

    tokens: Tensor
    log_probability: float
    score: float
    ended: bool


def beam_search(
    model: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int,
    beams: int,
    num_return: int = 1,
    length_penalty: float = 1.0,
    stop: Sequence[Sequence[int]] = (),
    end_of_text: int | None = None,
    prompt_mask: Tensor | None = None,
    memory: AnyMemory | HiddenMemory | None = None,
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Searches for the likeliest continuations of each prompt, one prompt after another.

    At every token the best `beams` continuations of all hypotheses are looked at. Those that end are set aside; the
    best `beams` that do not end go on. The search is over when none of these could still enter the result.

    Args:
        prompt, max_new_tokens, stop, end_of_text, prompt_mask, memory, context, context_mask: as for `generate`.
        beams: how many hypotheses to keep.
        num_return: how many to return, at most `beams`.
        length_penalty: 0 prefers short continuations, larger numbers longer ones (Wu et al. 2016, arXiv 1609.08144,
            section 7, with the length itself as the base).

    Returns:
        for each prompt its best hypotheses, the best first; fewer than `num_return` only if there are no more.

    Raises:
        InputError: a value is out of range, or a prompt does not fit.
    """
    check_model(model)
    stopping, prompts = Stopping(stop, end_of_text), Prompts.of(prompt, prompt_mask)
    for name, value in (("max_new_tokens", max_new_tokens), ("beams", beams)):
        check_count(name, value, 1)
    check_count("num_return", num_return, 1)
    if not math.isfinite(length_penalty):
        raise InputError(f"length_penalty is {length_penalty}; it must be finite")
    if num_return > beams:
        raise InputError(f"num_return is {num_return}; it must be from 1 to beams={beams}")
    check_rows(len(prompts.lengths), memory, context, context_mask)
    search, found = _Search(max_new_tokens, beams, num_return, length_penalty, stopping), []
    for row in torch.arange(len(prompts.lengths), device=prompts.tokens.device).split(1):
        reader = Reader(
            model,
            None if memory is None else memory.select(row),
            context=select_rows(context, row),
            context_mask=select_rows(context_mask, row),
        )
        found.append(search.run(reader, prompts.select(row).tokens))
    return found


@dataclass(frozen=True)
class _Search:
    """A search with its options, as `beam_search` takes them."""

    max_new_tokens: int
    beams: int
    num_return: int
    length_penalty: float
    stopping: Stopping

    @torch.no_grad()
    def run(self, reader: Reader, prompt: Tensor) -> list[Hypothesis]:
        """The best hypotheses behind a prompt (1, n)."""
        logits = reader.read(prompt)
        texts, totals = prompt[:, :0], logits.new_zeros(1, dtype=torch.float64)  # of the hypotheses that go on
        candidates = self.beams * (1 + len(self.stopping.last_tokens))  # so many that `beams` of them go on
        found: list[Hypothesis] = []
        for length in range(1, self.max_new_tokens + 1):
            all_totals = totals[:, None] + logits.double().log_softmax(-1)
            totals, places = all_totals.flatten().topk(min(candidates, all_totals.numel()))
            parents, tokens = places // all_totals.shape[1], places % all_totals.shape[1]
            texts = torch.cat([texts[parents], tokens[:, None]], dim=1)
            ended = self.stopping.ends(texts)
            best_ended, going_on = ended[: self.beams].nonzero()[:, 0], (~ended).nonzero()[: self.beams, 0]
            found = self._best([*found, *self._hypotheses(texts[best_ended], totals[best_ended], ended=True)])
            texts, totals, parents = texts[going_on], totals[going_on], parents[going_on]
            if length == self.max_new_tokens or self._is_over(found, totals, length):
                break
            reader.select(parents)
            logits = reader.read(texts[:, -1:])
        return self._best([*found, *self._hypotheses(texts, totals, ended=False)])

    def _is_over(self, found: list[Hypothesis], totals: Tensor, length: int) -> bool:
        """Whether nothing that goes on, with these log probabilities (k,), can still enter the result."""
        if not len(totals):
            return True
        longer = (length + 1, self.max_new_tokens)
        highest = max(self._score(float(totals[0]), end) for end in longer)  # scores rise or fall with the length
        return len(found) == self.num_return and highest <= found[-1].score

    def _best(self, found: list[Hypothesis]) -> list[Hypothesis]:
        return sorted(found, key=lambda hypothesis: -hypothesis.score)[: self.num_return]

    def _hypotheses(self, texts: Tensor, totals: Tensor, *, ended: bool) -> list[Hypothesis]:
        """Texts (k, n) with their log probabilities (k,)."""
        scored = zip(texts, totals.tolist(), strict=True)
        return [Hypothesis(text, total, self._score(total, len(text)), ended) for text, total in scored]

    def _score(self, log_probability: float, length: int) -> float:
        return log_probability / float(length**self.length_penalty)
