"""Texts that go on token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..baselines import HiddenMemory
from ..checks import check_count, check_kind
from ..errors import InputError
from ..memory import AnyMemory
from .prompts import Prompt, Prompts
from .reader import Model, ReaderState, check_model
from .rows import RowsReader
from .sampling import Generators, Sampling
from .stopping import Stopping

NO_TOKEN = -1  # what a row that has ended yields


@dataclass(frozen=True)
class ContinuationState:
    """All that the next tokens depend on besides the model, the options and a context; its size is constant.

    Attributes:
        readers: the rows (B',) of each group of rows whose segments end together, and what was read of them.
        unread: (B, 1), the newest token of each row, which was drawn and not read.
        seen: (B, V) bool, the tokens of each row's text.
        lengths: (B,), how many tokens each row's text has.
        random: (N, bytes) uint8, the states of the random generators: none, one, or one for each row.
    """

    readers: list[tuple[Tensor, ReaderState]]
    unread: Tensor
    seen: Tensor
    lengths: Tensor
    random: Tensor

    def generators(self, device: torch.device) -> Generators:
        """New random generators in the saved states.

        Raises:
            InputError: they were saved on another kind of device.
        """
        found = [torch.Generator(device) for _ in self.random]
        for generator, state in zip(found, self.random, strict=True):
            if state.shape != generator.get_state().shape:
                raise InputError(
                    f"the state's random numbers are of another kind of device than {device}; give a generator, on the "
                    "command line a --seed, which takes their place"
                )
            generator.set_state(state.clone())
        return None if not found else found[0] if len(found) == 1 else found


class Continuation(Iterator[Tensor]):
    """Yields the next token of each row, (B,), until `max_new_tokens` are drawn or all rows have ended."""

    def __init__(
        self,
        read_first: Callable[[], tuple[RowsReader, Tensor]],
        seen: Tensor,
        lengths: Tensor,
        max_new_tokens: int,
        sampling: Sampling,
        stopping: Stopping,
        generator: Generators,
    ) -> None:
        """Sets up; nothing is read before the first token is asked for.

        Args:
            read_first: reads what is not read yet; returns the reader and the logits (B, V).
            seen, lengths: as in `ContinuationState`.
        """
        self._read_first = read_first
        self._reader: RowsReader | None = None
        self._unread = lengths.new_empty(len(lengths), 0)
        self._seen, self._lengths = seen, lengths
        self._left, self._sampling, self._stopping, self._generator = max_new_tokens, sampling, stopping, generator
        self._recent = lengths.new_empty(len(lengths), 0)
        self._ended = torch.zeros_like(lengths, dtype=torch.bool)
        self._reads_on = False  # whether a row that has ended goes on being read with the others

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tensor:
        if not self._left or (self._stopping.sequences and bool(self._ended.all())):
            raise StopIteration
        if self._reader is None:
            self._reader, logits = self._read_first()
        else:
            self._reads_on = bool(self._stopping.sequences) and bool(self._ended.any())
            logits = self._reader.read(self._unread)
        token = self._sampling.draw(logits, self._generator, self._seen)
        self._left -= 1
        self._unread = token[:, None]
        self._seen = self._seen.scatter(1, self._unread, True)
        self._lengths = self._lengths + 1
        if not self._stopping.sequences:
            return token
        self._recent = torch.cat([self._recent, self._unread], dim=1)[:, -self._stopping.longest :]
        drawn = token.masked_fill(self._ended, NO_TOKEN)
        self._ended = self._ended | self._stopping.ends(self._recent)
        return drawn

    @property
    def ended(self) -> Tensor:
        """(B,) bool, which rows have come to a stop sequence or the end of text."""
        return self._ended

    @property
    def state(self) -> ContinuationState:
        """From where `generate` goes on exactly.

        Raises:
            InputError: nothing was drawn yet, or a row ended before the others.
        """
        if self._reader is None:
            raise InputError("no token was drawn yet, so there is no state; take at least one token")
        if self._reads_on:
            raise InputError(
                "a row ended while others went on, so that its state is gone; generate rows one by one, or without "
                "stop sequences, to keep their states"
            )
        given = self._generator
        generators = [] if given is None else [given] if isinstance(given, torch.Generator) else list(given)
        states = [generator.get_state() for generator in generators]
        random = torch.stack(states) if states else torch.empty(0, 0, dtype=torch.uint8)
        return ContinuationState(self._reader.states, self._unread, self._seen, self._lengths, random)


def generate(
    model: Model,
    prompt: Prompt | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[Sequence[int]] = (),
    end_of_text: int | None = None,
    generator: Generators = None,
    prompt_mask: Tensor | None = None,
    memory: AnyMemory | HiddenMemory | None = None,
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
    state: ContinuationState | None = None,
) -> Continuation:
    """Continues prompts, token by token. Every row continues as if it were alone.

    A token takes about as long as reading the weights, of which a model from `round_weights` has fewer bytes.

    Args:
        prompt: (B, n >= 1) tokens, or B tensors (n_b >= 1,) of different lengths. With a state it may be left out, and
            all rows have the same length.
        max_new_tokens: how many tokens to draw.
        temperature, top_k, top_p, min_p, repetition_penalty: see `Sampling`; the penalty counts the prompt too.
        stop: sequences of tokens; a row ends where this call has drawn one of them.
        end_of_text: a token that ends a row.
        generator: the source of randomness. With a sequence of one for each row, a row's tokens do not depend on the
            other rows; with a single one the rows share its random numbers. None: that of the state, or torch's.
        prompt_mask: (B, n) bool, True at a real token, where `prompt` is padded.
        memory, context, context_mask: see `Reader`; the memory precedes the prompt.
        state: where an earlier continuation stands; its tokens precede the prompt. A context must be given again.

    Returns:
        an iterator of tokens (B,), -1 for rows that have ended, with the attributes `ended` and `state`.

    Raises:
        InputError: a value is out of range, or a prompt is missing or does not fit.
    """
    check_model(model)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    stopping = Stopping(stop, end_of_text)
    check_count("max_new_tokens", max_new_tokens, 0)
    if state is not None:
        check_kind("state", state, ContinuationState, "the attribute `state` of what `generate` returned")
        if memory is not None:
            raise InputError("memory is given with a state, which has one; leave out one of them")
        if prompt is None and prompt_mask is not None:
            raise InputError("prompt_mask is given without a prompt; leave it out")
        state = state if prompt is None else _with_prompt(state, Prompts.of(prompt, prompt_mask))
        unread = state.unread
        if generator is None:
            generator = state.generators(unread.device)
        _check_generators(generator, len(unread), unread.device)

        def go_on() -> tuple[RowsReader, Tensor]:
            reader = RowsReader.resume(model, state.readers, context, context_mask)
            return reader, reader.read(unread)

        return Continuation(go_on, state.seen, state.lengths, max_new_tokens, sampling, stopping, generator)
    if prompt is None:
        raise InputError("prompt is missing; give one, or a state to go on from")
    prompts = Prompts.of(prompt, prompt_mask)
    _check_generators(generator, len(prompts.lengths), prompts.tokens.device)

    def start() -> tuple[RowsReader, Tensor]:
        return RowsReader.start(model, prompts, memory, context, context_mask)

    seen = _seen(prompts, model.config.vocab_size)
    return Continuation(start, seen, prompts.lengths, max_new_tokens, sampling, stopping, generator)


def _with_prompt(state: ContinuationState, prompts: Prompts) -> ContinuationState:
    """The state with prompts behind it that are not read yet."""
    if len(prompts.lengths) != len(state.lengths) or prompts.mask is not None:
        raise InputError(
            f"prompts have {prompts.lengths.tolist()} tokens; behind a state of {len(state.lengths)} rows they must be "
            "as many, all of the same length"
        )
    return dataclasses.replace(
        state,
        unread=torch.cat([state.unread, prompts.tokens], dim=1),
        seen=state.seen | _seen(prompts, state.seen.shape[1]),
        lengths=state.lengths + prompts.lengths,
    )


def _seen(prompts: Prompts, num_tokens: int) -> Tensor:
    """(B, V) bool, the tokens of each prompt; a reader reports those that are out of range."""
    tokens, mask = prompts.tokens.long().clamp(0, num_tokens - 1), prompts.mask
    seen = torch.zeros(len(tokens), num_tokens, dtype=torch.bool, device=tokens.device)
    if mask is not None:
        tokens = torch.where(mask, tokens, tokens[:, -1:])  # padding repeats a real token
    return seen.scatter(1, tokens, True)


def _check_generators(generator: Generators, rows: int, device: torch.device) -> None:
    for given in generator if isinstance(generator, Sequence) else () if generator is None else (generator,):
        check_kind("generator", given, torch.Generator, "a torch.Generator, or a list with one for each row")
        if given.device.type != device.type:
            raise InputError(f"generator is on {given.device}, the tokens on {device}; give one on the same device")
    if isinstance(generator, Sequence) and len(generator) != rows:
        raise InputError(f"generator has {len(generator)} random generators for {rows} rows; give one for each, or one")
