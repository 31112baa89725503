"""Atomic writes of files, and errors that say what could not be written."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError

PART = ".part"  # ends the name of what is being written; such a leftover of a crash may be deleted


def beside(path: Path) -> Path:
    """Where what becomes `path` is written, and what was `path` is deleted."""
    return path.with_name(path.name + PART)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that at every moment, even after a crash, `path` is the old file or the new one.

    Raises:
        InputError: the disk is full or the place cannot be written; the old file is still there.
    """
    part = beside(path)
    with writing(path):
        try:
            write_synced(part, content)
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        sync_directory(path.parent)


def check_vacant(folder: Path) -> None:
    """Raises InputError unless a folder is empty or does not exist."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no empty directory; choose another place, or delete it")


def check_can_be_made(folder: Path) -> None:
    """Raises InputError if a folder surely cannot be made or written: its parent is a file, or not ours to write."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise InputError(f"{folder} cannot be made, because {nearest} is a file; choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written: {nearest} is not writable; choose another place")


def check_can_be_written(option: str, path: str | None) -> None:
    """Raises InputError if a file, unless it is None, surely cannot be written; `option` is what gave its path."""
    if path is None:
        return
    parent = Path(path).absolute().parent
    if not Path(path).name or Path(path).is_dir() or not parent.is_dir():
        raise InputError(f"{option} is {path!r}, where no file can be; give a file in a directory that exists")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{option} is {path!r}, and {parent} is not writable; choose another place")


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can encode a text: it has no surrogates, which stand for other bytes in names of files."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def begin_directory(path: Path) -> None:
    """Makes a new directory to fill, `beside(path)`, which `finish_directory` turns into `path`.

    Raises:
        InputError: it cannot be made.
    """
    part = beside(path)
    with writing(path):
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)


def finish_directory(path: Path) -> None:
    """Renames what `begin_directory` made to `path`, once it is on the disk.

    Raises:
        InputError: it cannot be renamed.
    """
    part = beside(path)
    with writing(path):
        sync_directory(part)
        part.rename(path)
        sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Deletes a directory so that at every moment `path` is whole or gone.

    Raises:
        InputError: it cannot be deleted.
    """
    with writing(path):
        path.rename(beside(path))
        shutil.rmtree(beside(path))


def remove_parts(folder: Path) -> None:
    """Deletes what a crash left half written or half deleted in a folder, which need not be there.

    Raises:
        InputError: it cannot be deleted.
    """
    for left in folder.glob(f"*{PART}"):
        with writing(left):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on the disk; it raises OSError, and a part of the file may be left."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file; if that fails, the file is left as it was.

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            content = (line + "\n").encode()
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def truncate_synced(path: Path, length: int) -> None:
    """Cuts a file, made if it is missing, to `length` bytes, and waits until it is on the disk.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path), path.open("ab") as file:
        file.truncate(length)
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Waits until a file, if there is one, and its name are on the disk.

    Raises:
        InputError: the disk is full or broken.
    """
    if path.exists():
        with writing(path), path.open("ab") as file:
            os.fsync(file.fileno())
            sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Waits until the names in a directory are on the disk."""
    if os.name != "posix":  # elsewhere a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; what was saved before is untouched: "
            "free some space or choose another place"
        ) from error
