"""Reading token by token, with the memory and the unfinished segment as the only state: a token costs the same however
much was read before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..baselines import HiddenMemory, ParallelTransformer, TransformerXL
from ..checks import check_context, check_tokens
from ..errors import InputError
from ..memory import AnyMemory, Memory, StateMemory
from ..model import FeedbackTransformer
from ..recurrence import Incremental, computes_like, is_called_plainly, narrow_linear, select_rows
from .steps import is_plain_decoder, start_walk, walk_segments, with_neighbour

# Tokens of a long text read in one call: enough to be fast, few enough for their logits to stay small.
READ_AT_ONCE = 256

Model: TypeAlias = FeedbackTransformer | ParallelTransformer | TransformerXL


def check_model(model: object) -> None:
    """Raises InputError unless the model reads tokens, as those of `Model` and modules around them do."""
    if not hasattr(model, "token_emb"):
        raise InputError(
            f"model is of type {type(model).__name__}; it must be a model that reads tokens: a FeedbackTransformer, "
            "ParallelTransformer or TransformerXL"
        )


@dataclass(frozen=True)
class ReaderState:
    """What a reader has read, of constant size; another reader goes on from it exactly.

    Attributes:
        memory: up to the last whole segment; None for nothing.
        keys_values: those that a walk made of stored states, of the memory's newest slots; None where the memory is
            keys and values itself, or where no walk has made any.
        pending: (B, n < S), the tokens after the last whole segment; None for none.
    """

    memory: AnyMemory | HiddenMemory | None
    keys_values: Memory | None
    pending: Tensor | None

    def select(self, rows: Tensor) -> ReaderState:
        """The state of the rows (B',) named by index, in that order."""
        return ReaderState(
            None if self.memory is None else self.memory.select(rows),
            None if self.keys_values is None else self.keys_values.select(rows),
            select_rows(self.pending, rows),
        )


class Reader:
    """Reads text a few tokens at a time and gives the logits of what comes next.

    The state is the memory up to the last whole segment, and the fewer than S tokens after it. The logits are those
    of `model` over the whole text when a further token follows in the same segment, as it does in training. While it
    reads, the model must stay as it is.

    Args:
        memory: what precedes the text, as a call of the model returned it, or as another reader's `state`.
        context: (B, N, C), what every token also attends to; for models with a `context_dim`, and only for them.
        context_mask: (B, N) bool, True at what is seen of the context; None: all of it.
    """

    def __init__(
        self,
        model: Model,
        memory: AnyMemory | HiddenMemory | ReaderState | None = None,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> None:
        self.model = model
        start = memory if isinstance(memory, ReaderState) else ReaderState(memory, None, None)
        self.pending = start.pending
        self._memory: Any = start.memory
        self._keys_values = start.keys_values
        self._walk: Incremental | None = None
        self._in_inference_mode = False  # when the walk was set up
        self._context = {} if context is None and context_mask is None else _context_of(model, context, context_mask)

    @property
    def memory(self) -> Any:
        """What was read, up to the last whole segment, as a call of the model returns it."""
        return self._memory if self._walk is None else self._walk.memory

    @property
    def state(self) -> ReaderState:
        """What was read: another reader goes on from it exactly."""
        if self._walk is None:
            return ReaderState(self._memory, self._keys_values, self.pending)
        memory = self._walk.memory
        return ReaderState(memory, self._walk.keys_values if isinstance(memory, StateMemory) else None, self.pending)

    def select(self, rows: Tensor) -> None:
        """Goes on with the rows (B',) named by index, in that order (beam search)."""
        if self._walk is not None:
            self._walk.select(rows)
            self.pending = select_rows(self.pending, rows)
        else:
            selected = self.state.select(rows)
            self._memory, self._keys_values, self.pending = selected.memory, selected.keys_values, selected.pending
        self._context = {name: select_rows(value, rows) for name, value in self._context.items()}

    @torch.no_grad()
    def read(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reads tokens (B, n >= 1); returns the logits (B, V) after the last.

        Args:
            mask: (B, n) bool, True at a real token, where a text begins with padding. Then all rows' counts of real
                tokens have the same rest when divided by S, and nothing is pending.

        Raises:
            InputError: a token is out of range, or the memory or the context does not fit.
        """
        if mask is not None:
            return self._read_padded(tokens, mask)
        if self.pending is not None:
            tokens = torch.cat([self.pending, tokens], dim=1)
        seq_len = self.model.config.seq_len
        whole = tokens.shape[1] // seq_len * seq_len
        logits = self._logits(tokens, whole)
        self.pending = tokens[:, whole:] if whole < tokens.shape[1] else None
        return logits

    def _read_padded(self, tokens: Tensor, mask: Tensor) -> Tensor:
        seq_len, time = self.model.config.seq_len, tokens.shape[1]
        whole = time // seq_len * seq_len
        if self.pending is not None or self._walk is not None:
            raise InputError("mask is given where a text goes on; only the start of a text may be padded")
        if bool((mask.sum(1) % seq_len != time % seq_len).any()):
            raise InputError(
                f"rows of {mask.sum(1).tolist()} tokens end at different places of segments of {seq_len}; read rows "
                "that end at the same place together, the others by another reader"
            )
        parts = [
            part.split(-(-READ_AT_ONCE // seq_len) * seq_len, dim=1) for part in (tokens[:, :whole], mask[:, :whole])
        ]
        self._keys_values = None
        if whole:
            for part, real in zip(*parts, strict=True):
                logits, self._memory = self.model(part, self._memory, return_memory=True, mask=real, **self._context)
        return logits[:, -1] if whole == time else self.read(tokens[:, whole:])

    def _logits(self, tokens: Tensor, whole: int) -> Tensor:
        """The logits (B, V) after tokens, of which the first `whole` enter the memory."""
        if isinstance(self.model, FeedbackTransformer) and _is_plain(self.model):
            check_tokens(tokens, self.model.config.vocab_size)
            x = self.model.token_emb(tokens)
            self._project_context(self.model, x)
            if self._walk is not None and self._in_inference_mode != torch.is_inference_mode_enabled():
                # What a walk set up in inference mode cannot be written to outside of it.
                state, self._walk = self.state, None
                self._memory, self._keys_values = state.memory, state.keys_values
            if self._walk is None:
                self._in_inference_mode = torch.is_inference_mode_enabled()
                self._walk = start_walk(self.model.decoder, x, self._memory, self._keys_values, **self._context)
            if self._walk is not None:
                for states in walk_segments(self._walk, x, self.model.config.seq_len):
                    last = states[:, -1]
                return self._to_logits(self.model.decoder.norm(last))
        return self._call(tokens, whole)

    @cached_property
    def _to_logits(self) -> Callable[[Tensor], Tensor]:
        """States (B, D) to logits (B, V)."""
        return narrow_linear(self.model.to_logits)

    def _project_context(self, model: FeedbackTransformer, x: Tensor) -> None:
        """Puts the context's keys and values, which are made once, in the place of the context."""
        context = self._context.get("context")
        check_context(x, context, self._context.get("context_mask"), model.config)
        if isinstance(context, Tensor):
            self._context["context"] = model.decoder.project_context(context)

    def _call(self, tokens: Tensor, whole: int) -> Tensor:
        """The same by calls of the model."""
        if self._walk is not None:  # a hook, which a walk does not call, was registered since
            self._memory, self._walk = self._walk.memory, None
        seq_len, logits = self.model.config.seq_len, None
        self._keys_values = None
        for part in tokens[:, :whole].split(-(-READ_AT_ONCE // seq_len) * seq_len, dim=1):
            if part.shape[1]:
                logits, self._memory = self.model(part, self._memory, return_memory=True, **self._context)
        if whole < tokens.shape[1]:
            rest = with_neighbour(tokens[:, whole:])
            logits = self.model(rest, self._memory, **self._context)[:, : tokens.shape[1] - whole]
        assert logits is not None
        return logits[:, -1]


def _context_of(model: Model, context: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
    """What a call of the model takes as context."""
    if not isinstance(model, FeedbackTransformer):
        raise InputError(f"context is given, but a {type(model).__name__} has none; leave it out")
    return {"context": context, "context_mask": mask}


def _is_plain(model: FeedbackTransformer) -> bool:
    """Whether the model's parts, one called after the other, are the model."""
    return computes_like(model, FeedbackTransformer) and is_called_plainly(model) and is_plain_decoder(model.decoder)
