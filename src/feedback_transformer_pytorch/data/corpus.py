"""The text to train on and the held-out text."""

from __future__ import annotations

import bisect
import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .standard_library import standard_library_text
from .store import Progress, tokenize
from .text import Text, encode_text
from .tokenizer import Tokenizer, Tokens

HELDOUT_DIVISOR = 20  # one in so many tokens is held out
HELDOUT_LIMIT = 1_000_000  # bytes


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text in two parts that do not overlap, and its name in reports."""

    train: Text
    heldout: Text
    name: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of both parts, in hexadecimal."""
        return hashlib.sha256(f"{self.train.fingerprint} {self.heldout.fingerprint}".encode()).hexdigest()


def default_corpus(tokenizer: Tokenizer) -> Corpus:
    """Return the English text of the standard library, about 2 MB, in a few seconds.

    The held-out text is the last tenth of the topics' paragraphs and the last tenth of the docstrings' paragraphs, so
    both parts have both kinds of text. Repeated paragraphs are dropped before the split (`standard_library_text`).
    The text depends on the version of Python. Each part is one document.

    Raises:
        InputError: this Python was installed without the sources of its library.
    """
    train: list[str] = []
    heldout: list[str] = []
    for paragraphs in standard_library_text():
        split = len(paragraphs) * 9 // 10
        train += paragraphs[:split]
        heldout += paragraphs[split:]
    return Corpus(
        encode_text(_join(train), tokenizer),
        encode_text(_join(heldout), tokenizer),
        f"standard library of Python {platform.python_version()}",
    )


def read_corpus(
    files: Sequence[str],
    heldout_files: Sequence[str],
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    cache: Path,
    on_progress: Progress | None = None,
) -> Corpus:
    """Read the text of `files`, and hold out the text of `heldout_files` or, without those, the end of `files`.

    That end is 5 % of the tokens, or the last 1,000,000 bytes if that is less. It has up to three more tokens if it
    would otherwise start in the middle of a UTF-8 character.

    Args:
        files: arguments of `read_pieces`; none for the `default_corpus`.
        heldout_files: arguments of `read_pieces`; none to hold out the end of `files`.
        text_field, cache, on_progress: arguments of `tokenize`, for both texts.

    Raises:
        InputError: `tokenize` raises it, held-out files are given alone, or a text is too short to hold out two tokens.
        MissingExtraError: `tokenize` raises it.
    """
    if not files:
        if heldout_files:
            raise InputError(
                f"held-out files are given ({' '.join(heldout_files)}) but no files to train on; give both, or neither"
            )
        return default_corpus(tokenizer)
    if "-" in files and "-" in heldout_files:
        raise InputError(
            "- is given to train on and to hold out, but standard input can be read only once; give - once"
        )
    name = " ".join(files)
    text = tokenize(files, tokenizer, text_field=text_field, cache=cache, on_progress=on_progress)
    if not heldout_files:
        return Corpus(*text.split(_heldout_start(text.tokens, tokenizer, name), tokenizer), name)
    heldout = tokenize(heldout_files, tokenizer, text_field=text_field, cache=cache, on_progress=on_progress)
    if len(heldout.tokens) < 2:
        raise InputError(f"{' '.join(heldout_files)!r} has one token, too few to hold out; give two or more")
    return Corpus(text, heldout, name)


def _heldout_start(tokens: Tokens, tokenizer: Tokenizer, name: str) -> int:
    longest = len(tokens) // HELDOUT_DIVISOR
    if longest < 2:
        raise InputError(
            f"{name!r} has {len(tokens)} tokens, too few to hold out one in {HELDOUT_DIVISOR} for evaluation; "
            f"give text of {2 * HELDOUT_DIVISOR} tokens or more, or held-out files"
        )
    longest = min(longest, HELDOUT_LIMIT)  # no token is shorter than a byte
    lengths = range(1, longest + 1)
    count = bisect.bisect(lengths, HELDOUT_LIMIT, key=lambda n: tokenizer.num_bytes(tokens[len(tokens) - n :]))
    return _character_start(tokens, len(tokens) - count, tokenizer)


def _character_start(tokens: Tokens, position: int, tokenizer: Tokenizer) -> int:
    """The token that starts the character at `position`, at most three tokens back."""
    for start in range(position, max(position - 4, 0), -1):
        if tokenizer.decode_bytes(tokens[start : start + 1])[0] & 0xC0 != 0x80:
            return start
    return position


def _join(paragraphs: list[str]) -> bytes:
    # A string literal may contain half a surrogate pair, which UTF-8 cannot encode.
    return ("\n\n".join(paragraphs) + "\n").encode("utf-8", errors="replace")
