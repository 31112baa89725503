"""Measures the model and xz on the held-out text, and writes a sample of the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from ...data import Corpus, Tokenizer
from ...generation import generate
from ..models.architectures import LanguageModel
from ..options import TrainOptions
from .bits_per_byte import bits_per_byte
from .xz import XZ_DICTIONARY, XzFigures, xz_bits_per_byte

ROWS = 32


class Validation:
    """The first `eval_len` tokens of the held-out text, read after the end of the training text."""

    def __init__(self, options: TrainOptions, corpus: Corpus, tokenizer: Tokenizer) -> None:
        train, heldout = corpus.train.tokens, corpus.heldout.tokens[: options.eval_len]
        self.num_bytes = tokenizer.num_bytes(heldout)
        self._options, self._corpus, self._tokenizer = options, corpus, tokenizer
        self._lead = min(len(train), 2 * options.mem_len)
        self._tokens = np.concatenate([train[len(train) - self._lead :], heldout])
        self._resets = _resets(corpus, self._lead, len(heldout)) if options.reset_documents else None
        self._rows = max(1, min(ROWS, len(heldout) // options.block_len))

    def xz(self) -> XzFigures:
        """Bits per byte of xz on the same bytes. It takes some seconds for each 4 MB of training text."""
        heldout = self._tokenizer.decode_bytes(self._tokens[self._lead :])
        if self._corpus.train.num_bytes + len(heldout) > XZ_DICTIONARY:
            return XzFigures(xz_bits_per_byte(heldout), None)
        train = self._tokenizer.decode_bytes(self._corpus.train.tokens)
        return XzFigures(xz_bits_per_byte(heldout), xz_bits_per_byte(heldout, train))

    def bits_per_byte(self, model: LanguageModel, after_block: Callable[[], None]) -> float:
        """Bits per byte of the model on the held-out text (see `bits_per_byte.bits_per_byte`)."""
        return bits_per_byte(
            model,
            self._tokens,
            self._tokenizer,
            block_len=self._options.block_len,
            lead=self._lead,
            rows=self._rows,
            resets=self._resets,
            after_block=lambda _: after_block(),
        )

    def sample(self, model: LanguageModel, update: int, after_token: Callable[[], None]) -> str:
        """A text by the model, determined by weights, seed and update. It does not use the global random state."""
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(self._options.seed + update)
        prompt = torch.from_numpy(self._tokenizer.encode("\n").astype(np.int64))[None].to(device)
        model.eval()
        tokens = []
        for token in generate(
            model, prompt, max_new_tokens=self._options.sample_len, temperature=0.8, generator=generator
        ):
            tokens.append(int(token))
            after_token()
        model.train()
        return self._tokenizer.decode(tokens)


def _resets(corpus: Corpus, lead: int, length: int) -> npt.NDArray[np.bool_]:
    """(lead + length,), True where a document starts: the end of the training text, then the held-out text."""
    resets = np.zeros(lead + length, np.bool_)
    before = corpus.train.starts - (len(corpus.train.tokens) - lead)
    resets[before[before >= 0]] = True
    resets[lead + corpus.heldout.starts[corpus.heldout.starts < length]] = True
    return resets
