"""What a run measures now and then: the model and xz on held-out text, or the model on held-out labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...data import Corpus, Tokenizer
from ...errors import InputError
from ...generation import generate
from ...tasks import Labelled
from ..models.architectures import LanguageModel
from ..objective import Objective, objective_of
from ..options import TrainOptions
from .label_counts import count_sequences, count_stream
from .measured import Measured
from .reading import evaluating, split_rows
from .text_bits import text_bits
from .xz import XZ_DICTIONARY, XzFigures, xz_bits_per_byte

ROWS = 32
MIN_STREAM_LEAD = 1024


class Validation(Protocol):
    """Measures a model on what is held out of training."""

    def reference(self) -> XzFigures | None:
        """Figures of a general-purpose program on the same data, to compare with; None if there are none.

        Raises:
            XzError: the program failed.
        """

    def measure(self, model: LanguageModel, objective: Objective, check: Callable[[], None]) -> dict[str, float]:
        """The loss, where it says more than the metrics, and the metrics of the objective by name.

        Args:
            check: called after each block; it may raise an exception to stop.
        """

    def sample(self, model: LanguageModel, update: int, check: Callable[[], None]) -> str:
        """Something by the model to look at; empty if there is nothing. `check` is called after each token."""


class TextValidation:
    """The first `eval_len` tokens of the held-out text, read after the end of the training text."""

    def __init__(self, options: TrainOptions, corpus: Corpus, tokenizer: Tokenizer) -> None:
        train, heldout = corpus.train.tokens, corpus.heldout.tokens[: options.eval_len]
        self.num_bytes = tokenizer.num_bytes(heldout)
        self._options, self._corpus, self._tokenizer = options, corpus, tokenizer
        self._lead = min(len(train), text_lead(options.mem_len))
        self._tokens = np.concatenate([train[len(train) - self._lead :], heldout])
        self._resets = _resets(corpus, self._lead, len(heldout)) if options.reset_documents else None
        self._rows = max(1, min(ROWS, len(heldout) // options.block_len))

    def reference(self) -> XzFigures:
        """Bits per byte of xz on the same bytes. It takes some seconds for each 4 MB of training text."""
        heldout = self._tokenizer.decode_bytes(self._tokens[self._lead :])
        if self._corpus.train.num_bytes + len(heldout) > XZ_DICTIONARY:
            return XzFigures(xz_bits_per_byte(heldout), None)
        train = self._tokenizer.decode_bytes(self._corpus.train.tokens)
        return XzFigures(xz_bits_per_byte(heldout), xz_bits_per_byte(heldout, train))

    def measure(self, model: LanguageModel, objective: Objective, check: Callable[[], None]) -> dict[str, float]:
        """The metrics on the held-out text (see `text_bits`)."""
        found = text_bits(
            model,
            objective,
            self._tokens,
            self._tokenizer,
            block_len=self._options.block_len,
            lead=self._lead,
            rows=self._rows,
            resets=self._resets,
            after_block=lambda _: check(),
        )
        return found.values

    def sample(self, model: LanguageModel, update: int, check: Callable[[], None]) -> str:
        """A text by the model, determined by weights, seed and update. It does not use the global random state."""
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(self._options.seed + update)
        prompt = torch.from_numpy(self._tokenizer.encode("\n").astype(np.int64))[None].to(device)
        tokens = []
        with evaluating(model):
            for token in generate(
                model, prompt, max_new_tokens=self._options.sample_len, temperature=0.8, generator=generator
            ):
                tokens.append(int(token))
                check()
        return self._tokenizer.decode(tokens)


class LabelValidation:
    """Held-out labels, of which there is neither a reference nor a sample."""

    def reference(self) -> None:
        """None: no other program is measured."""

    def sample(self, model: LanguageModel, update: int, check: Callable[[], None]) -> str:
        """Nothing."""
        return ""


class SequenceValidation(LabelValidation):
    """Held-out sequences, each read from an empty memory."""

    def __init__(self, sequences: Sequence[Labelled]) -> None:
        self._sequences = sequences

    def measure(self, model: LanguageModel, objective: Objective, check: Callable[[], None]) -> dict[str, float]:
        """Loss and metrics (see `count_sequences`)."""
        return _figures(count_sequences(model, objective, self._sequences, lambda _: check()))


class StreamValidation(LabelValidation):
    """The first `eval_len` positions of a held-out stream, after a lead that is read and not counted.

    Raises:
        InputError: none of them has a label.
    """

    def __init__(self, options: TrainOptions, stream: Labelled) -> None:
        self._lead = min(len(stream.tokens) // 2, stream_lead(options.mem_len))
        self._stream = Labelled(*(values[: self._lead + options.eval_len] for values in stream))
        self._block_len = options.block_len
        self._rows = max(1, min(ROWS, (len(self._stream.tokens) - self._lead) // options.block_len))
        counted = split_rows(self._stream.labels, lead=self._lead, rows=self._rows)[:, self._lead :]
        if not objective_of(options).mask(torch.tensor(counted)).any():
            raise InputError(
                f"--eval-len is {options.eval_len}: the {counted.size} positions of the held-out stream that follow "
                f"its first {self._lead} have no label to validate on; give a larger --eval-len or more held-out data"
            )

    def measure(self, model: LanguageModel, objective: Objective, check: Callable[[], None]) -> dict[str, float]:
        """Loss and metrics (see `count_stream`)."""
        found = count_stream(
            model,
            objective,
            self._stream,
            block_len=self._block_len,
            lead=self._lead,
            rows=self._rows,
            after_block=lambda _: check(),
        )
        return _figures(found)


def text_lead(mem_len: int) -> int:
    """How many tokens of a text to read before a part of it."""
    return 2 * mem_len


def stream_lead(mem_len: int) -> int:
    """How many tokens of a stream to read before a part of it, so that a state of long ago is known."""
    return max(2 * mem_len, MIN_STREAM_LEAD)


def _figures(found: Measured) -> dict[str, float]:
    return {"loss": found.loss, **found.values}


def _resets(corpus: Corpus, lead: int, length: int) -> npt.NDArray[np.bool_]:
    """(lead + length,), True where a document starts: the end of the training text, then the held-out text."""
    resets = np.zeros(lead + length, np.bool_)
    before = corpus.train.starts - (len(corpus.train.tokens) - lead)
    resets[before[before >= 0]] = True
    resets[lead + corpus.heldout.starts[corpus.heldout.starts < length]] = True
    return resets
