"""The lock of a RUN directory. The system releases it when the process that holds it ends, even if it is killed."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from ...files import writing

LOCK = ".lock"  # an empty file, which stays in the directory


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """In this context, no other process trains in the directory `path`, which is created if it does not exist.

    Raises:
        InputError: another process trains there, or the directory cannot be written.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{path} is being trained by another process; wait until it ends, or choose another --out"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
