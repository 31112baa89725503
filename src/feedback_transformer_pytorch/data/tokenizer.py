"""Tokenizers: the interface, and bytes as tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, SupportsInt

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Tokens = npt.NDArray[np.integer[Any]]


class StreamDecoder(Protocol):
    """Decodes tokens one at a time; the concatenated results equal `Tokenizer.decode` of all tokens."""

    def push(self, token: SupportsInt) -> str:
        """Return the text that `token` completes; it is empty in the middle of a character."""

    def finish(self) -> str:
        """Return the rest: U+FFFD for an incomplete character."""


class Tokenizer(Protocol):
    """The interface that training, evaluation and generation need.

    Every token stands for fixed bytes, and the tokens of a text stand for exactly its bytes. So bits per byte can be
    compared between tokenizers.
    """

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, V."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the tokens: the smallest unsigned integer type that holds V - 1."""

    @property
    def fingerprint(self) -> str:
        """Identifies the tokenizer: equal fingerprints mean equal tokens for every text, on any machine."""

    def encode(self, text: str | bytes) -> Tokens:
        """Return the tokens of `text`, (T,), each from 0 to V - 1."""

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        """Return the tokens of each of `texts`, in parallel if that is faster."""

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Return the text of `tokens`; bytes that are not UTF-8 become U+FFFD."""

    def decode_bytes(self, tokens: Iterable[SupportsInt]) -> bytes:
        """Return the bytes that `tokens` stand for, exactly."""

    def num_bytes(self, tokens: Tokens) -> int:
        """Return how many bytes of text `tokens` stand for: the denominator of bits per byte."""

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for tokens that come one at a time."""

    def to_json(self) -> str | None:
        """Return the content of a `tokenizer.json`; None if there is nothing to save."""


class ByteTokenizer:
    """A `Tokenizer` whose tokens are the bytes of the text, in UTF-8."""

    num_tokens = 256
    dtype = np.dtype(np.uint8)
    fingerprint = "bytes"

    def encode(self, text: str | bytes) -> npt.NDArray[np.uint8]:
        """Return the bytes of `text`, (T,) uint8, in a new array that may be written to.

        Bytes that the command line could not decode (`surrogateescape`) are restored.

        Raises:
            InputError: `text` holds any other lone surrogate.
        """
        return np.frombuffer(bytearray(to_bytes(text)), dtype=np.uint8)

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        """Return the bytes of each of `texts`, which must not be written to."""
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Return the text of `tokens`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: a token is not from 0 to 255.
        """
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[SupportsInt]) -> bytes:
        """Return `tokens` as bytes.

        Raises:
            ValueError: a token is not from 0 to 255.
        """
        if isinstance(tokens, np.ndarray) and tokens.dtype == self.dtype:
            return tokens.tobytes()  # seconds faster for a large corpus
        return bytes(map(int, tokens))

    def num_bytes(self, tokens: Tokens) -> int:
        """Return how many bytes of text `tokens` stand for: one for each token."""
        return len(tokens)

    def stream_decoder(self) -> ByteStreamDecoder:
        """Return a new decoder for tokens that come one at a time."""
        return ByteStreamDecoder(self)

    def to_json(self) -> None:
        """Return None: there is nothing to save."""
        return


class ByteStreamDecoder:
    """A `StreamDecoder` for tokens that stand for bytes of UTF-8: it returns a character with its last byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: SupportsInt) -> str:
        """Return the text that `token`, from 0 to V - 1, completes."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """Return U+FFFD if the tokens end in the middle of a character, otherwise nothing."""
        return self._decoder.decode(b"", final=True)


def to_bytes(text: str | bytes) -> bytes:
    """Return `text` in UTF-8; bytes that the command line could not decode (`surrogateescape`) are restored.

    Raises:
        InputError: `text` holds any other lone surrogate.
    """
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has {text[error.start]!r} at position {error.start}, which UTF-8 cannot encode; "
            "give text without lone surrogates"
        ) from error
