"""Loads the tokenizer that `--tokenizer` names."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .bpe import BpeTokenizer
from .tokenizer import ByteTokenizer, Tokenizer

_WHAT_TO_GIVE = "give bytes, or a tokenizer.json that `feedback-transformer tokenizer train` made"


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Return the `ByteTokenizer` for "bytes", otherwise the `BpeTokenizer` of the `tokenizer.json` at `source`.

    Raises:
        InputError: the file is missing, unreadable or damaged, or its tokenizer may change the text.
        MissingExtraError: `source` is a file, but `tokenizers` is not installed.
    """
    if source == "bytes":
        return ByteTokenizer()
    name = repr(str(source))
    try:
        content = Path(source).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; {_WHAT_TO_GIVE}") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); {_WHAT_TO_GIVE}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not a tokenizer.json (it is not UTF-8); {_WHAT_TO_GIVE}") from error
    try:
        return BpeTokenizer(content)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
