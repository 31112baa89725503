"""The text to train on and the text held out from it."""

from __future__ import annotations

import glob
import gzip
import lzma
import math
import platform
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .standard_library import standard_library_text

_DECOMPRESS = {".gz": gzip.decompress, ".xz": lzma.decompress}
_CORRUPT = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


@dataclass(frozen=True)
class Corpus:
    """A text in two parts that do not overlap, as bytes, and what to call it in a report."""

    train: bytes
    heldout: bytes
    name: str


def default_corpus() -> Corpus:
    """Return the standard library's English, about 2 MB; it takes a few seconds to collect.

    Held out are the last tenth of the topics' paragraphs and the last tenth of the docstrings', so that both parts
    have both kinds of text. Repeated paragraphs were dropped before the split (`standard_library_text`).
    The text depends on Python's version.

    Raises:
        InputError: this Python was installed without the sources of its library.
    """
    train: list[str] = []
    heldout: list[str] = []
    for paragraphs in standard_library_text():
        cut = len(paragraphs) * 9 // 10
        train += paragraphs[:cut]
        heldout += paragraphs[cut:]
    return Corpus(_join(train), _join(heldout), f"standard library of Python {platform.python_version()}")


def read_corpus(sources: Sequence[str], *, heldout_fraction: float = 0.05, heldout_limit: int = 1_000_000) -> Corpus:
    """Read `sources` (see `read_text`) and hold out the end of the whole text.

    Args:
        sources: files, globs or `-`.
        heldout_fraction: the part of the bytes held out, between 0 and 1.
        heldout_limit: the most bytes held out; a character of UTF-8 is never cut, which may add three.

    Raises:
        InputError: as `read_text` does, an argument is out of range, or the text is too short to hold out two bytes.
    """
    if not 0 < heldout_fraction < 1:
        raise InputError(f"heldout_fraction is {heldout_fraction}; give a number between 0 and 1, such as 0.05")
    if heldout_limit < 2:
        raise InputError(f"heldout_limit is {heldout_limit} bytes; give 2 or more: the second is the first predicted")
    text = read_text(sources)
    name = " ".join(sources)
    heldout_len = min(int(len(text) * heldout_fraction), heldout_limit)
    if heldout_len < 2:
        raise InputError(
            f"{name!r} has {len(text)} bytes, too few to hold out {heldout_fraction:.3g} of them for evaluation; "
            f"give {math.ceil(2 / heldout_fraction)} bytes or more"
        )
    cut = _character_start(text, len(text) - heldout_len)
    return Corpus(text[:cut], text[cut:], name)


def read_text(sources: Sequence[str]) -> bytes:
    """Return the bytes of all `sources`, in the order given, with nothing put between them.

    A source is a file; a glob (`**` spans folders), which stands for the files it matches, sorted by path; or `-`,
    which is standard input. Files that end in `.gz` or `.xz` are decompressed.

    Raises:
        InputError: there is no source; a file is missing, unreadable, corrupt, empty or a directory; a glob matches
            no file; `-` is given twice.
    """
    if not sources:
        raise InputError("no text was given; give files, globs, or - for standard input")
    if sources.count("-") > 1:
        raise InputError(f"- is given {sources.count('-')} times; standard input can be read once: give - once")
    return b"".join(part for source in sources for part in _read_source(source))


def _read_source(source: str) -> Iterator[bytes]:
    if source == "-":
        yield _not_empty(sys.stdin.buffer.read(), "standard input (-)")
        return
    for path in _expand(source):
        yield _not_empty(_read_file(path), repr(str(path)))


def _expand(source: str) -> list[Path]:
    is_glob = any(character in source for character in "*?[")
    if not is_glob or Path(source).is_file():  # a file's own name may hold such characters
        return [Path(source)]
    matches = (Path(match) for match in glob.glob(source, recursive=True))  # noqa: PTH207 (Path.glob: relative only)
    files = sorted(path for path in matches if path.is_file())
    if not files:
        raise InputError(f"{source!r} matches no file; give a glob that matches text files, or a path")
    return files


def _read_file(path: Path) -> bytes:
    name = repr(str(path))
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; give a text file, a glob, or - for standard input") from None
    except IsADirectoryError:
        raise InputError(f"{name} is a directory; give its files, for example {str(path / '*.txt')!r}") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); give a file that you can read") from error
    decompress = _DECOMPRESS.get(path.suffix)
    if decompress is None:
        return stored
    try:
        return decompress(stored)
    except _CORRUPT as error:
        raise InputError(
            f"{name} is not a whole {path.suffix} file ({error}); make it again, or rename it if it is plain text"
        ) from error


def _not_empty(text: bytes, name: str) -> bytes:
    if not text:
        raise InputError(f"{name} is empty; leave it out, or give a file with text")
    return text


def _character_start(text: bytes, position: int) -> int:
    """The start of the UTF-8 character that covers `position`; at most three bytes back, whatever the bytes are."""
    for start in range(position, max(position - 4, -1), -1):
        if text[start] & 0xC0 != 0x80:
            return start
    return position


def _join(paragraphs: list[str]) -> bytes:
    # A string literal may hold half a surrogate pair, which UTF-8 cannot.
    return ("\n\n".join(paragraphs) + "\n").encode("utf-8", errors="replace")
