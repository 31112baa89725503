"""Tokens of texts of any size in memory-mapped files, written once for each text and tokenizer.

CACHE/FINGERPRINT/tokens.bin     the tokens, of the tokenizer's dtype
CACHE/FINGERPRINT/documents.bin  where in the tokens each document starts, int64
CACHE/FINGERPRINT/index.json     numbers of tokens, documents and bytes of text
CACHE/unfinished-*               files that a process is writing; after a crash they may be deleted
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import sync, write_atomically, writing
from .documents import Piece, check_sources, is_pipe, open_pipe, read_pieces
from .text import Fingerprint, Text
from .tokenizer import Tokenizer

Progress = Callable[[int, int | None], None]

_BATCH_BYTES = 2**23
_COUNTS = {"tokens", "documents", "bytes"}


def tokenize(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    cache: Path,
    on_progress: Progress | None = None,
) -> Text:
    """Return the tokens of `sources` (see `read_pieces`), mapped from files in `cache`.

    The sources are read once to compute the fingerprint of the text. If the cache does not have it, they are read a
    second time and tokenized. Standard input and pipes are copied to temporary files. Memory holds a few pieces at a
    time. Several processes may tokenize the same text at the same time.

    Args:
        sources: arguments of `read_pieces`.
        tokenizer: gets many pieces in one call, so that it can work in parallel.
        text_field: the field that holds the text in JSON lines and datasets.
        cache: a folder, which is created if it is missing (see `default_cache`).
        on_progress: called with the number of bytes read and the number of all bytes. In the first reading the latter
            is None; in the second reading the former starts from 0.

    Raises:
        InputError: the text cannot be read or tokenized or changed between the readings, or the cache cannot be written
            or is damaged.
        MissingExtraError: a dataset is given, but `datasets` is not installed.
    """
    report = on_progress or (lambda done, total: None)
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="unfinished-") as temporary:
            sources = _keep_pipes(sources, Path(temporary))
            known = Fingerprint(tokenizer)
            for batch in _batches(read_pieces(sources, text_field=text_field)):
                for piece in batch:
                    known.add(piece)
                report(known.num_bytes, None)
            folder = cache / str(known)
            if not folder.exists():
                store = Path(temporary) / "store"
                second = Fingerprint(tokenizer)
                pieces = _fingerprinted(read_pieces(sources, text_field=text_field), second)
                _write(store, pieces, tokenizer, lambda done: report(done, known.num_bytes))
                if str(second) != str(known):
                    raise InputError("the text changed while it was read; run again when nothing writes to it")
                _move(store, folder)
    return _open(folder, tokenizer)


def default_cache() -> Path:
    """Return the folder for tokens: `feedback-transformer` in $XDG_CACHE_HOME or, if that is not set, in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feedback-transformer"


def cache_at(folder: str | None) -> Path:
    """Return the folder for tokens that `--cache` gives; without one, the `default_cache`."""
    return default_cache() if folder is None else Path(folder)


def _keep_pipes(sources: Sequence[str], folder: Path) -> list[str]:
    """Copy standard input and pipes to files; return `sources` with these files in their place."""
    check_sources(sources)
    kept = list(sources)
    for number, source in enumerate(sources):
        if is_pipe(source):
            copy = folder / str(number) / ("standard-input" if source == "-" else Path(source).name)
            copy.parent.mkdir()
            with copy.open("wb") as file:
                _copy_pipe(source, file)
            kept[number] = str(copy)
    return kept


def _copy_pipe(source: str, file: BinaryIO) -> None:
    if source == "-":
        shutil.copyfileobj(sys.stdin.buffer, file)
    else:
        with open_pipe(source) as pipe:
            shutil.copyfileobj(pipe, file)
    if file.tell() == 0:
        name = "standard input (-)" if source == "-" else repr(source)
        raise InputError(f"{name} is empty; leave it out, or give a file with text")


def _fingerprinted(pieces: Iterable[Piece], fingerprint: Fingerprint) -> Iterator[Piece]:
    for piece in pieces:
        fingerprint.add(piece)
        yield piece


def _write(folder: Path, pieces: Iterable[Piece], tokenizer: Tokenizer, report: Callable[[int], None]) -> None:
    folder.mkdir()
    count = dict.fromkeys(_COUNTS, 0)
    with (folder / "tokens.bin").open("wb") as token_file, (folder / "documents.bin").open("wb") as document_file:
        for batch in _batches(pieces):
            encoded = tokenizer.encode_batch([piece.text for piece in batch])
            for piece, tokens in zip(batch, encoded, strict=True):
                if piece.starts_document:
                    document_file.write(np.int64(count["tokens"]).tobytes())
                    count["documents"] += 1
                token_file.write(tokens.tobytes())
                count["tokens"] += len(tokens)
                count["bytes"] += len(piece.text)
            report(count["bytes"])
    sync(folder / "tokens.bin")
    sync(folder / "documents.bin")
    write_atomically(folder / "index.json", json.dumps(count, indent=2, sort_keys=True).encode())


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _move(store: Path, folder: Path) -> None:
    try:
        store.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster; its tokens are the same
            raise


def _open(folder: Path, tokenizer: Tokenizer) -> Text:
    count = _read_index(folder / "index.json")
    return Text(
        tokens=_map(folder / "tokens.bin", tokenizer.dtype, count["tokens"]),
        starts=_map(folder / "documents.bin", np.dtype(np.int64), count["documents"]),
        num_bytes=count["bytes"],
        fingerprint=folder.name,
    )


def _read_index(path: Path) -> dict[str, int]:
    try:
        count = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(count, dict) or set(count) != _COUNTS or not all(type(n) is int for n in count.values()):
        raise _damaged(path, f"it does not have the counts of {', '.join(sorted(_COUNTS))}")
    return count


def _map(path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    expected = count * dtype.itemsize
    try:
        size = path.stat().st_size
        if size != expected:
            raise _damaged(path, f"it has {size} bytes, not {expected}")
        return np.memmap(path, dtype=dtype, mode="r", shape=(count,))
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged ({reason}); delete the folder {path.parent} and run again")
