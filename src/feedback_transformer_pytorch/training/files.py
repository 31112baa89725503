"""Files that are whole at every moment, and errors that say what could not be written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that at every moment, even after a crash, `path` is the old file or the new one.

    Raises:
        InputError: the disk is full or the place cannot be written; the old file is still there.
    """
    beside = path.with_name(path.name + ".part")
    with writing(path):
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        _sync_directory(path.parent)


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


def _sync_directory(path: Path) -> None:
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
            "make room or choose another place"
        ) from error
