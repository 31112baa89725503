"""Text to tokens and back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, SupportsInt

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Tokens = npt.NDArray[np.integer[Any]]


class StreamDecoder(Protocol):
    """Turns tokens into text as they come; what it has returned by `finish` is `Tokenizer.decode` of them all."""

    def push(self, token: SupportsInt) -> str:
        """Return the text that `token` completes, which is empty within a character."""

    def finish(self) -> str:
        """Return what is left of an incomplete character."""


class Tokenizer(Protocol):
    """What training, evaluation and generation need of a tokenizer.

    Every token stands for certain bytes, and the tokens of a text for exactly its bytes: bits per byte is comparable
    between tokenizers.
    """

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, V."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the tokens that it returns: the smallest unsigned integer that holds V - 1."""

    @property
    def fingerprint(self) -> str:
        """The same for tokenizers that make the same tokens of the same text, on any machine."""

    def encode(self, text: str | bytes) -> Tokens:
        """Return the tokens of `text`, (T,), each from 0 to V - 1."""

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        """Return the tokens of each of `texts`, in parallel where that is faster."""

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD."""

    def decode_bytes(self, tokens: Iterable[SupportsInt]) -> bytes:
        """Return the bytes that `tokens` stand for, exactly."""

    def num_bytes(self, tokens: Tokens) -> int:
        """Return how many bytes of text `tokens` stand for: the denominator of bits per byte, whatever the tokens."""

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for tokens that come one at a time."""

    def to_json(self) -> str | None:
        """Return the content of the standard `tokenizer.json`; None where there is nothing to save."""


class ByteTokenizer:
    """A `Tokenizer` whose tokens are the bytes of the text, in UTF-8."""

    num_tokens = 256
    dtype = np.dtype(np.uint8)
    fingerprint = "bytes"

    def encode(self, text: str | bytes) -> npt.NDArray[np.uint8]:
        """Return the bytes of `text`, (T,) uint8, in an array of its own that may be written to.

        Bytes that the command line could not decode (`surrogateescape`) come back as they were.

        Raises:
            InputError: `text` holds any other lone surrogate.
        """
        return np.frombuffer(bytearray(to_bytes(text)), dtype=np.uint8)

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        """Return the bytes of each of `texts`, which must not be written to."""
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD.

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
            return tokens.tobytes()  # a whole corpus: seconds less than one by one
        return bytes(map(int, tokens))

    def num_bytes(self, tokens: Tokens) -> int:
        """Return how many bytes of text `tokens` stand for, which is how many they are."""
        return len(tokens)

    def stream_decoder(self) -> ByteStreamDecoder:
        """Return a new decoder for tokens that come one at a time."""
        return ByteStreamDecoder(self)

    def to_json(self) -> None:
        """Return None: there is nothing to save."""
        return


class ByteStreamDecoder:
    """A `StreamDecoder` for tokens that stand for bytes of UTF-8: a character is returned with its last byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: SupportsInt) -> str:
        """Return the text that `token`, from 0 to V - 1, completes."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """Return U+FFFD if the tokens ended within a character, else nothing."""
        return self._decoder.decode(b"", final=True)


def to_bytes(text: str | bytes) -> bytes:
    """Return `text` in UTF-8; bytes that the command line could not decode (`surrogateescape`) come back as they were.

    Raises:
        InputError: `text` holds any other lone surrogate.
    """
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has {text[error.start]!r} at position {error.start}, which UTF-8 cannot hold; "
            "give text without lone surrogates"
        ) from error
