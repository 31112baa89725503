"""Text to tokens and back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any, Protocol, SupportsInt

import numpy as np
import numpy.typing as npt

from ..errors import InputError


class StreamDecoder(Protocol):
    """Turns tokens into text as they come; what it has returned by `finish` is `Tokenizer.decode` of them all."""

    def push(self, token: SupportsInt) -> str:
        """Return the text that `token` completes, which is empty within a character."""

    def finish(self) -> str:
        """Return what is left of an incomplete character."""


class Tokenizer(Protocol):
    """What training, evaluation and generation need of a tokenizer."""

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, V."""

    def encode(self, text: str | bytes) -> npt.NDArray[np.integer[Any]]:
        """Return the tokens of `text`, (T,), each from 0 to V - 1."""

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD."""

    def num_bytes(self, tokens: npt.NDArray[np.integer[Any]]) -> int:
        """Return how many bytes of text `tokens` stand for: the denominator of bits per byte, whatever the tokens."""

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for tokens that come one at a time."""


class ByteTokenizer:
    """A `Tokenizer` whose tokens are the bytes of the text, in UTF-8."""

    num_tokens = 256

    def encode(self, text: str | bytes) -> npt.NDArray[np.uint8]:
        """Return the bytes of `text`, (T,) uint8, in an array of its own that may be written to.

        Bytes that the command line could not decode (`surrogateescape`) come back as they were.

        Raises:
            InputError: `text` holds any other lone surrogate.
        """
        if isinstance(text, str):
            try:
                text = text.encode("utf-8", errors="surrogateescape")
            except UnicodeEncodeError as error:
                raise InputError(
                    f"the text has {text[error.start]!r} at position {error.start}, which UTF-8 cannot hold; "
                    "give text without lone surrogates"
                ) from error
        return np.frombuffer(bytearray(text), dtype=np.uint8)

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: a token is not from 0 to 255.
        """
        return bytes(map(int, tokens)).decode("utf-8", errors="replace")

    def num_bytes(self, tokens: npt.NDArray[np.integer[Any]]) -> int:
        """Return how many bytes of text `tokens` stand for, which is how many they are."""
        return len(tokens)

    def stream_decoder(self) -> ByteStreamDecoder:
        """Return a new decoder for tokens that come one at a time."""
        return ByteStreamDecoder()


class ByteStreamDecoder:
    """A `StreamDecoder` of UTF-8: a character is returned with its last byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: SupportsInt) -> str:
        """Return the text that `token`, from 0 to 255, completes."""
        return self._decoder.decode(bytes([int(token)]))

    def finish(self) -> str:
        """Return U+FFFD if the tokens ended within a character, else nothing."""
        return self._decoder.decode(b"", final=True)
