"""Text from files, standard input, JSON lines and saved datasets, in pieces that fit in memory."""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import InputError, MissingExtraError

PIECE_LEN = 2**20

_OPEN = {".gz": gzip.open, ".xz": lzma.open}
_CORRUPT = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)
_JSON_LINES = {".jsonl", ".ndjson"}


class Piece(NamedTuple):
    """A part of a document. In UTF-8 text it does not split characters."""

    text: bytes
    starts_document: bool


def read_pieces(sources: Sequence[str], *, text_field: str = "text") -> Iterator[Piece]:
    """Read `sources` in the given order, with nothing between them, in pieces of about 1 MiB.

    A piece that contains a line break ends with one. Where pieces end depends only on the documents, not on how they
    are stored. A source is

    - a file: one document. Files that end in `.gz` or `.xz` are decompressed;
    - a file that ends in `.jsonl` or `.ndjson`, compressed or not: each line is an object, and its `text_field` one
      document;
    - a directory where Hugging Face `datasets` saved a dataset: each row's `text_field` is one document. If the dataset
      has splits, the split "train" is read;
    - a glob (`**` spans folders): the files it matches, sorted by path;
    - `-`, standard input: one document.

    Empty documents from JSON lines and datasets are skipped. The others get a line break at the end if they have none.
    Half a surrogate pair, which UTF-8 cannot encode, becomes `?`.

    Raises:
        InputError: at the call, if there is no source or `-` is given twice. While reading, if a file is missing,
            unreadable, corrupt, empty or a directory without a dataset, if a glob matches no file, or if a line or row
            has no string in `text_field`.
        MissingExtraError: a dataset is given, but `datasets` is not installed.
    """
    check_sources(sources)
    return (piece for source in sources for piece in _read_source(source, text_field))


def _read_source(source: str, text_field: str) -> Iterator[Piece]:
    if source == "-":
        yield from _not_empty(_split(sys.stdin.buffer), "standard input (-)")
        return
    for path in _expand(source):
        yield from _not_empty(_read_path(path, text_field), repr(str(path)))


def _expand(source: str) -> list[Path]:
    is_glob = any(character in source for character in "*?[")
    if not is_glob or Path(source).exists():  # the name of a file may contain such characters
        return [Path(source)]
    matches = (Path(match) for match in glob.glob(source, recursive=True))  # noqa: PTH207 (Path.glob: relative only)
    files = sorted(path for path in matches if path.is_file())
    if not files:
        raise InputError(f"{source!r} matches no file; give a glob that matches text files, or a path")
    return files


def _read_path(path: Path, text_field: str) -> Iterator[Piece]:
    with reading(path):
        is_dataset = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if is_dataset:
        return _split_each(_dataset_documents(path, text_field))
    return _read_file(path, text_field)


def _read_file(path: Path, text_field: str) -> Iterator[Piece]:
    with _opened(path) as file:
        if _is_json_lines(path):
            yield from _split_each(_json_documents(file, repr(str(path)), text_field))
        else:
            yield from _split(file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, decompressed; says what is wrong with it if it cannot be read to its end."""
    try:
        with reading(path), _open(path) as file:
            yield file
    except _CORRUPT as error:
        raise InputError(
            f"{str(path)!r} is not a complete {path.suffix} file ({error}); recreate it, or rename it if it is plain "
            "text"
        ) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Says what is wrong with a file or directory if it cannot be read."""
    name = repr(str(path))
    try:
        yield
    except gzip.BadGzipFile:  # an OSError, which `_opened` explains
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; give a text file, a glob, or - for standard input") from None
    except IsADirectoryError:
        raise InputError(
            f"{name} is a directory without a saved dataset; give its files, for example {str(path / '*.txt')!r}"
        ) from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); give a file that you can read") from error


def _open(path: Path) -> BinaryIO:
    opener: Any = _OPEN.get(path.suffix.lower(), open)
    return opener(path, "rb")


def _is_json_lines(path: Path) -> bool:
    return (path.with_suffix("") if path.suffix.lower() in _OPEN else path).suffix.lower() in _JSON_LINES


def json_lines(sources: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects in files of JSON lines, whatever their names end in, and where each stands, as errors say it.

    Args:
        sources: as `read_pieces` takes them, without datasets.

    Raises:
        InputError: as `read_pieces` does, or if a line is not a JSON object.
    """
    check_sources(sources)
    for source in sources:
        if source == "-":
            yield from _json_objects(sys.stdin.buffer, "standard input (-)")
            continue
        for path in _expand(source):
            with _opened(path) as file:
                yield from _json_objects(file, repr(str(path)))


def is_pipe(source: str) -> bool:
    """Whether a source can be read only once: `-`, or the path of a pipe, such as `<(...)` in a shell."""
    if source == "-":
        return True
    with reading(Path(source)):
        return Path(source).is_fifo()


def open_pipe(path: str) -> BinaryIO:
    """The pipe, which waits for its writer.

    Raises:
        InputError: it cannot be opened.
    """
    with reading(Path(path)):
        return Path(path).open("rb")


def check_heldout(sources: Sequence[str], heldout: Sequence[str]) -> None:
    """Checks that no file is both trained on and held out.

    Args:
        sources: arguments of `read_pieces` to train on.
        heldout: those to validate on; none: the end of `sources` is held out.

    Raises:
        InputError: a file is in both, or twice in `sources` where their end is held out.
    """
    known, unseen = _files_of(sources), set(_files_of(heldout))
    counts = Counter(known)
    twice = [path for path in known if path in unseen or (not heldout and counts[path] > 1)]
    if twice:
        raise InputError(
            f"{str(twice[0])!r} is given twice, and what is held out must not be trained on; name it once"
            + ("" if heldout else ", or give --heldout")
        )


def _files_of(sources: Sequence[str]) -> list[Path]:
    return [path.resolve() for source in sources if source != "-" for path in _expand(source)]


def check_sources(sources: Sequence[str]) -> None:
    """Raises InputError if there is no source, or if standard input or another pipe is one of them twice."""
    if not sources:
        raise InputError("no text was given; give files, globs, or - for standard input")
    for source, times in Counter(sources).items():
        if times > 1 and is_pipe(source):
            name = "standard input" if source == "-" else "a pipe"
            raise InputError(f"{source} is given {times} times; {name} can be read only once: give {source} once")


def _json_objects(lines: Iterable[bytes], name: str) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)  # without the line number that str(error) would add
            raise InputError(f"{where} is not JSON ({reason}); give one JSON object in each line") from error
        if not isinstance(record, dict):
            raise InputError(
                f"{where} is {type(record).__name__}, not a JSON object; give one JSON object in each line"
            )
        yield record, where


def _json_documents(lines: Iterable[bytes], name: str, text_field: str) -> Iterator[str]:
    for record, where in _json_objects(lines, name):
        if text_field not in record:
            raise InputError(_no_field(where, text_field, record))
        yield _string(record[text_field], text_field, where)


def _dataset_documents(path: Path, text_field: str) -> Iterator[str]:
    name = repr(str(path))
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets") from error
    try:
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} is not a complete dataset ({reason}); save it again with save_to_disk") from error
    if isinstance(dataset, datasets.DatasetDict):
        if "train" not in dataset:
            raise InputError(f"{name} has the splits {sorted(dataset)}, not 'train'; give the directory of one of them")
        dataset = dataset["train"]
    if text_field not in dataset.column_names:
        raise InputError(_no_field(name, text_field, dataset.column_names))
    batches = dataset.select_columns([text_field]).iter(1000)  # several times faster than row by row
    for number, text in enumerate((text for batch in batches for text in batch[text_field]), 1):
        yield _string(text, text_field, f"{name}, row {number}")


def _string(text: object, text_field: str, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(
            f"{where} has {type(text).__name__} in {text_field!r}, not a string; give another --text-field"
        )
    return text


def _no_field(where: str, text_field: str, found: Iterable[str]) -> str:
    names = ", ".join(map(repr, found)) or "none"
    return f"{where} has no field {text_field!r} (its fields: {names}); give the right field as --text-field"


def _split_each(documents: Iterable[str]) -> Iterator[Piece]:
    for document in documents:
        if document:
            text = document.encode("utf-8", errors="replace")
            yield from _split(io.BytesIO(text if text.endswith(b"\n") else text + b"\n"))


def _split(file: BinaryIO) -> Iterator[Piece]:
    """Split one document into pieces."""
    starts_document = True
    rest = b""
    while chunk := file.read(PIECE_LEN):
        rest += chunk
        end = rest.rfind(b"\n") + 1 or _last_character(rest)
        if end:
            yield Piece(rest[:end], starts_document)
            starts_document = False
            rest = rest[end:]
    if rest:
        yield Piece(rest, starts_document)


def _last_character(text: bytes) -> int:
    """Where the last UTF-8 character, complete or not, starts; the end of `text` if none starts in the last 4 bytes."""
    starts = (n for n in range(len(text) - 1, max(len(text) - 5, -1), -1) if text[n] & 0xC0 != 0x80)
    return next(starts, len(text))


def _not_empty(pieces: Iterator[Piece], name: str) -> Iterator[Piece]:
    first = next(pieces, None)
    if first is None:
        raise InputError(f"{name} is empty; leave it out, or give a file with text")
    yield first
    yield from pieces
