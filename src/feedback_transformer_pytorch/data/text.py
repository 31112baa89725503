"""A text as tokens, with what identifies it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .documents import Piece
from .tokenizer import Tokenizer, Tokens

_VERSION = 1  # raise it when the same pieces and tokenizer come to make other tokens


@dataclass(frozen=True, eq=False)
class Text:
    """A text as tokens.

    Attributes:
        tokens: (N,) integers of the tokenizer's dtype, in memory or a read-only `np.memmap`.
        starts: (K,) int64, ascending: where in `tokens` each document starts; the first is 0.
        num_bytes: bytes that all `tokens` stand for.
        fingerprint: hexadecimal; of the bytes, where the documents start in them, and the tokenizer.
    """

    tokens: Tokens
    starts: npt.NDArray[np.int64]
    num_bytes: int
    fingerprint: str

    def split(self, cut: int, tokenizer: Tokenizer) -> tuple[Text, Text]:
        """Return the text before token `cut`, from 1 to N - 1, and the text from it on, which starts a document."""
        first_after = int(np.searchsorted(self.starts, cut, side="right"))
        first_before = int(np.searchsorted(self.starts, cut, side="left"))
        after_bytes = tokenizer.num_bytes(self.tokens[cut:])
        starts = np.concatenate([[0], self.starts[first_after:] - cut])
        return (
            Text(self.tokens[:cut], self.starts[:first_before], self.num_bytes - after_bytes, self._part(f"< {cut}")),
            Text(self.tokens[cut:], starts, after_bytes, self._part(f">= {cut}")),
        )

    def _part(self, which: str) -> str:
        return hashlib.sha256(f"{self.fingerprint} {which}".encode()).hexdigest()


class Fingerprint:
    """The fingerprint of a text that comes in pieces, however it is cut into them.

    Attributes:
        num_bytes: bytes that came so far.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.num_bytes = 0
        self._text = hashlib.sha256()
        self._starts = hashlib.sha256()
        self._tokenizer = tokenizer.fingerprint

    def add(self, piece: Piece) -> None:
        """Take in the next piece."""
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
