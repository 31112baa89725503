"""Sampling, with the memory and the unfinished segment as the only state: a token costs the same however much was
written before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .baselines import HiddenMemory, ParallelTransformer, TransformerXL
from .errors import InputError
from .layers import ContextKeysValues
from .memory import AnyMemory
from .model import FeedbackDecoder, FeedbackTransformer, check_context, check_tokens
from .recurrence import Incremental, WalkRequest, computes_like, is_called_plainly

# Tokens of a long text read in one call: enough to be fast, few enough for their logits to stay small.
READ_AT_ONCE = 256

Model: TypeAlias = FeedbackTransformer | ParallelTransformer | TransformerXL


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: only the k likeliest tokens may be drawn; None for all.
        top_p: only the likeliest tokens whose probabilities just reach p may be drawn (Holtzman et al. 2020);
            None for all.

    Raises:
        InputError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; it must be at least 0 and finite")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One token (B,) from logits (B, V)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None:
            ranked, order = logits.softmax(-1).sort(descending=True)
            beyond = ranked.cumsum(-1) - ranked >= self.top_p
            logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), float("-inf"))
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


class Reader:
    """Reads text a few tokens at a time and gives the logits of what comes next.

    The state is the memory up to the last whole segment, and the fewer than S tokens after it. The logits are those
    of `model` over the whole text when a further token follows in the same segment, as it does in training. While it
    reads, the model must stay as it is.

    Args:
        memory: what precedes the text, as a call of the model returned it.
        context: (B, N, C), what every token also attends to; for models with a `context_dim`, and only for them.
        context_mask: (B, N) bool, True at what is seen of the context; None: all of it.
    """

    def __init__(
        self,
        model: Model,
        memory: AnyMemory | HiddenMemory | None = None,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> None:
        self.model = model
        self.pending: Tensor | None = None
        self._memory: Any = memory
        self._walk: Incremental | None = None
        self._context = {} if context is None and context_mask is None else _context_of(model, context, context_mask)

    @property
    def memory(self) -> Any:
        """What was read, up to the last whole segment, as a call of the model returns it."""
        return self._memory if self._walk is None else self._walk.memory

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """Reads tokens (B, n >= 1); returns the logits (B, V) after the last.

        Raises:
            InputError: a token is out of range, or the memory or the context does not fit.
        """
        if self.pending is not None:
            tokens = torch.cat([self.pending, tokens], dim=1)
        seq_len = self.model.config.seq_len
        whole = tokens.shape[1] // seq_len * seq_len
        logits = self._logits(tokens, whole)
        self.pending = tokens[:, whole:] if whole < tokens.shape[1] else None
        return logits

    def _logits(self, tokens: Tensor, whole: int) -> Tensor:
        """The logits (B, V) after tokens, of which the first `whole` enter the memory."""
        if isinstance(self.model, FeedbackTransformer) and _is_plain(self.model):
            check_tokens(tokens, self.model.token_emb.num_embeddings)
            x = self.model.token_emb(tokens)
            self._project_context(self.model, x)
            if self._walk is None and self.model.implementation != "stepwise":
                self._walk = _walk(self.model, x, self._memory, **self._context)
            if self._walk is not None:
                state = _step(self._walk, x, self.model.config.seq_len)
                return self.model.to_logits(self.model.decoder.norm(state))
        return self._call(tokens, whole)

    def _project_context(self, model: FeedbackTransformer, x: Tensor) -> None:
        """Puts the context's keys and values, which are made once, in the place of the context."""
        context = self._context.get("context")
        check_context(x, context, self._context.get("context_mask"), model.config)
        if isinstance(context, Tensor):
            self._context["context"] = model.decoder.project_context(context)

    def _call(self, tokens: Tensor, whole: int) -> Tensor:
        """The same by calls of the model."""
        seq_len, logits = self.model.config.seq_len, None
        for part in tokens[:, :whole].split(-(-READ_AT_ONCE // seq_len) * seq_len, dim=1):
            if part.shape[1]:
                logits, self._memory = self.model(part, self._memory, return_memory=True, **self._context)
        if whole < tokens.shape[1]:
            rest = _with_neighbour(tokens[:, whole:])
            logits = self.model(rest, self._memory, **self._context)[:, : tokens.shape[1] - whole]
        assert logits is not None
        return logits[:, -1]


def _is_plain(model: FeedbackTransformer) -> bool:
    """Whether the model's parts, one called after the other, are the model."""
    if not computes_like(model, FeedbackTransformer) or not computes_like(model.decoder, FeedbackDecoder):
        return False
    return is_called_plainly(model) and is_called_plainly(model.decoder)


def _context_of(model: Model, context: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
    """What a call of the model takes as context."""
    if not isinstance(model, FeedbackTransformer):
        raise InputError(f"context is given, but a {type(model).__name__} has none; leave it out")
    return {"context": context, "context_mask": mask}


def _walk(
    model: FeedbackTransformer,
    x: Tensor,
    memory: Any,
    context: ContextKeysValues | None = None,
    context_mask: Tensor | None = None,
) -> Incremental | None:
    """A walk that goes on behind a memory, for embeddings like x (B, T, D); None where it does not apply."""
    stack, past = model.decoder.stack, model.decoder.start(memory, x)
    request = WalkRequest(x, *model.decoder.keys_values(past), context=context, context_mask=context_mask)
    return Incremental(stack, request, past) if Incremental.applies(stack, request, past) else None


def _step(walk: Incremental, x: Tensor, seq_len: int) -> Tensor:
    """Walks over x (B, T, D); returns the top state (B, D) at its end."""
    for segment in x.split(seq_len, dim=1):
        states = walk.step(segment) if segment.shape[1] == seq_len else walk.peek(_with_neighbour(segment))
    return states[:, (x.shape[1] - 1) % seq_len]


def _with_neighbour(segment: Tensor) -> Tensor:
    """The segment; a single token twice. By itself a token has no local key, which it has inside a longer segment, and
    it does not see its neighbour."""
    return segment if segment.shape[1] > 1 else torch.cat([segment, segment], dim=1)


def generate(
    model: Model,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    memory: AnyMemory | HiddenMemory | None = None,
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """Continues a prompt, token by token.

    Args:
        prompt: (B, n >= 1) tokens.
        max_new_tokens: how many tokens to draw.
        temperature, top_k, top_p: see `Sampling`.
        generator: the source of randomness.
        memory, context, context_mask: see `Reader`; the memory precedes the prompt.

    Yields:
        tokens (B,).

    Raises:
        InputError: a value is out of range.
    """
    sampling = Sampling(temperature, top_k, top_p)
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 0")
    reader = Reader(model, memory, context=context, context_mask=context_mask)
    return _continue(reader, prompt, max_new_tokens, sampling, generator)


def _continue(
    reader: Reader, tokens: Tensor, count: int, sampling: Sampling, generator: torch.Generator | None
) -> Iterator[Tensor]:
    for _ in range(count):
        token = sampling.draw(reader.read(tokens), generator)
        yield token
        tokens = token[:, None]
