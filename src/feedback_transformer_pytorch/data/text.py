"""A text as tokens, and its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .documents import Piece
from .tokenizer import Tokenizer, Tokens

_VERSION = 1  # increase it when the same pieces and tokenizer give different tokens


@dataclass(frozen=True, eq=False)
class Text:
    """A text as tokens.

    Attributes:
        tokens: (N,) integers of the tokenizer's dtype, in memory or a read-only `np.memmap`.
        starts: (K,) int64, ascending: where in `tokens` each document starts; the first is 0.
        num_bytes: number of bytes of the text.
        fingerprint: SHA-256 of the bytes, the starts of documents and the tokenizer, in hexadecimal.
    """

    tokens: Tokens
    starts: npt.NDArray[np.int64]
    num_bytes: int
    fingerprint: str

    def split(self, at: int, tokenizer: Tokenizer) -> tuple[Text, Text]:
        """Return the text before token `at`, from 1 to N - 1, and the text from it on, which starts a document."""
        first_after = int(np.searchsorted(self.starts, at, side="right"))
        first_before = int(np.searchsorted(self.starts, at, side="left"))
        after_bytes = tokenizer.num_bytes(self.tokens[at:])
        starts = np.concatenate([[0], self.starts[first_after:] - at])
        return (
            Text(self.tokens[:at], self.starts[:first_before], self.num_bytes - after_bytes, self._part(f"< {at}")),
            Text(self.tokens[at:], starts, after_bytes, self._part(f">= {at}")),
        )

    def _part(self, which: str) -> str:
        return hashlib.sha256(f"{self.fingerprint} {which}".encode()).hexdigest()


class Fingerprint:
    """The fingerprint of a text that comes in pieces. It does not depend on where pieces end.

    Attributes:
        num_bytes: number of bytes so far.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.num_bytes = 0
        self._text = hashlib.sha256()
        self._starts = hashlib.sha256()
        self._tokenizer = tokenizer.fingerprint

    def add(self, piece: Piece) -> None:
        """Add the next piece."""
        if piece.starts_document:
            self._starts.update(self.num_bytes.to_bytes(8, "little"))
        self._text.update(piece.text)
        self.num_bytes += len(piece.text)

    def __str__(self) -> str:
        parts = [str(_VERSION), self._text.hexdigest(), self._starts.hexdigest(), self._tokenizer]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def encode_text(text: bytes, tokenizer: Tokenizer) -> Text:
    """Return `text` as one document, in memory.

    Raises:
        InputError: `tokenizer` cannot encode it.
    """
    fingerprint = Fingerprint(tokenizer)
    fingerprint.add(Piece(text, starts_document=True))
    return Text(tokenizer.encode(text), np.zeros(1, np.int64), len(text), str(fingerprint))
