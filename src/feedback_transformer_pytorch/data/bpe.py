"""Byte-level byte-pair encoding (BPE), stored as a `tokenizer.json` of the Hugging Face library `tokenizers`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, SupportsInt

import numpy as np

from ..errors import InputError, MissingExtraError
from .documents import read_pieces
from .tokenizer import ByteStreamDecoder, Tokens, to_bytes

_SHOWN_BYTES = 30


class BpeTokenizer:
    """A `Tokenizer` for UTF-8 text whose tokens are byte strings that are frequent in the text it was trained on.

    It accepts only a `tokenizer.json` that preserves every byte. It ignores settings of padding, truncation and special
    tokens around a text. A special token inside a text is encoded as that token.

    Args:
        content: the content of a `tokenizer.json`.

    Raises:
        InputError: `content` is damaged, or the tokenizer may change the text.
        MissingExtraError: `tokenizers` is not installed.
    """

    def __init__(self, content: str) -> None:
        library = _tokenizers()
        try:
            self._backend = library.Tokenizer.from_str(content)
        except Exception as error:  # the library raises nothing more specific
            reason = " ".join(str(error).split())
            raise InputError(f"the content is not a tokenizer.json ({reason}); save the tokenizer again") from error
        self._backend.no_padding()
        self._backend.no_truncation()
        doubt = next(_may_change_text(json.loads(self.to_json())), None)
        if doubt is not None:
            raise InputError(
                f"the tokenizer {doubt}, so its tokens may not give back the bytes of the text; "
                "make one with `feedback-transformer tokenizer train`"
            )
        self._bytes = _bytes_of_tokens(self._backend)
        self._lengths = np.array([len(token) for token in self._bytes], dtype=np.int64)
        self.num_tokens = len(self._bytes)
        self.dtype = np.dtype(np.uint16 if self.num_tokens <= 2**16 else np.uint32)
        self.fingerprint = hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(self, text: str | bytes) -> Tokens:
        """Return the tokens of `text`, (T,), each from 0 to V - 1.

        Raises:
            InputError: `text` is not UTF-8.
        """
        return self.encode_batch([to_bytes(text)])[0]

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        """Return the tokens of each of `texts`, encoded in one thread for each processor.

        Raises:
            InputError: a text is not UTF-8.
        """
        encodings = self._backend.encode_batch_fast([_to_str(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Return the text of `tokens`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            IndexError: a token is V or more.
        """
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[SupportsInt]) -> bytes:
        """Return the bytes that `tokens` stand for, exactly.

        Raises:
            IndexError: a token is V or more.
        """
        return b"".join(self._bytes[int(token)] for token in tokens)

    def num_bytes(self, tokens: Tokens) -> int:
        """Return how many bytes of text `tokens` stand for."""
        return int(self._lengths[tokens].sum())

    def stream_decoder(self) -> ByteStreamDecoder:
        """Return a new decoder for tokens that come one at a time."""
        return ByteStreamDecoder(self)

    def to_json(self) -> str:
        """Return the content of the `tokenizer.json`."""
        return self._backend.to_str(pretty=True)


def train_bpe(sources: Sequence[str], vocab_size: int, *, text_field: str = "text") -> BpeTokenizer:
    """Train a tokenizer on `sources` (see `read_pieces`); the same text gives the same tokenizer.

    Args:
        sources: arguments of `read_pieces`, in UTF-8.
        vocab_size: V, 256 or more, because every byte is a token. V becomes smaller if no other pair occurs twice.
        text_field: the field that holds the text in JSON lines and datasets.

    Raises:
        InputError: `vocab_size` is too small, or the text cannot be read or is not UTF-8.
        MissingExtraError: `tokenizers` is not installed.
    """
    if vocab_size < 256:
        raise InputError(f"the vocabulary size is {vocab_size}; give 256 or more, because every byte is a token")
    library = _tokenizers()
    byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = byte_level
    backend.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    texts = (_to_str(piece.text) for piece in read_pieces(sources, text_field=text_field))
    backend.train_from_iterator(texts, trainer)
    return BpeTokenizer(backend.to_str())


def _tokenizers() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("tokenizers", "train") from error
    return tokenizers


def _to_str(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        before = text[max(0, error.start - _SHOWN_BYTES) : error.start]
        raise InputError(
            f"the text has the byte {text[error.start]:#04x} after {before!r}, which is not UTF-8; "
            "convert the text to UTF-8, or use --tokenizer bytes, which accepts any text"
        ) from error


def _may_change_text(spec: dict[str, Any]) -> Iterator[str]:
    """Yield the reasons why a tokenizer may drop, add or change bytes, or encode a text in different ways."""
    model = spec["model"]
    if model["type"] != "BPE":
        yield f"is of type {model['type']}, not BPE"
        return
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[name]:
            yield f"has {name} {model[name]!r}"
    if spec["normalizer"] is not None:
        yield f"has a normalizer ({spec['normalizer']['type']})"
    if (spec["decoder"] or {}).get("type") != "ByteLevel":
        yield "has no byte-level decoder"
    yield from _splitting_may_change_text(spec["pre_tokenizer"] or {"type": "none"})
    missing = sum(character not in model["vocab"] for character in _BYTE_OF_CHARACTER)
    if missing:
        yield f"has no token for {missing} of the 256 bytes"
    for token in spec["added_tokens"]:
        if token["lstrip"] or token["rstrip"]:
            yield f"drops the space beside {token['content']!r}"


def _splitting_may_change_text(pre_tokenizer: dict[str, Any]) -> Iterator[str]:
    *splits, last = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    if last["type"] != "ByteLevel":
        yield f"ends splitting with {last['type']}, not ByteLevel"
    elif last["add_prefix_space"]:
        yield "adds a space before the text"
    for split in splits:
        if split["type"] not in ("Split", "Digits") or split.get("behavior") == "Removed":
            yield f"splits the text with {split['type']} ({split.get('behavior', 'no option')})"


def _bytes_of_tokens(backend: Any) -> list[bytes]:
    """Return the bytes of each token; none for a number that is not a token."""
    vocab: dict[str, int] = backend.get_vocab()
    table = [b""] * (max(vocab.values()) + 1)
    added = backend.get_added_tokens_decoder()
    for token, number in vocab.items():
        table[number] = token.encode() if number in added else bytes(map(_BYTE_OF_CHARACTER.__getitem__, token))
    return table


def _byte_of_character() -> dict[str, int]:
    """Invert the byte-level alphabet of GPT-2: printable bytes map to themselves, the others to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
_CHARACTER_OF_BYTE = {byte: character for character, byte in _BYTE_OF_CHARACTER.items()}


def character_of_byte(byte: int) -> str:
    """What stands for a byte in the vocabulary of a byte-level tokenizer."""
    return _CHARACTER_OF_BYTE[byte]
