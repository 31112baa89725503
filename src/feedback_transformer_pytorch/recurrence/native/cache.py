"""The user's folder of compiled kernels: who may write there, what passed its test, and who builds.

kernel-KEY.so      a compiled kernel
kernel-KEY.sha256  the sum of the one that passed its self-test; without it the kernel counts as not there
kernel-KEY.failed  why the last attempt failed, so that not every process repeats it
lock               locked while a process builds
building-*         what a process is building; a leftover of a crash may be deleted
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

KEPT = 4  # kernels of other versions, compilers or processors
SECONDS_BETWEEN_ATTEMPTS = 3600
SECONDS_TO_WAIT = 600
_SECONDS_UNTIL_LEFTOVER = 3600

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: then processes may build at the same time, each a whole file
            return True
        return True

    def _unlock(file: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def kernel_folder() -> Path:
    """The folder of compiled kernels, made if need be.

    Raises:
        OSError: it cannot be made, or others may write to it, who could then run what they like.
        RuntimeError: there is no home directory.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (base if base.is_absolute() else Path.home() / ".cache") / "feedback-transformer-pytorch"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _is_private(folder):
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def is_tested(path: Path) -> bool:
    """Whether a kernel is there, is this user's alone, and is byte for byte the one that passed its self-test."""
    try:
        if not (_is_private(path) and _is_private(_record(path))):
            return False
        return _record(path).read_text() == _sha256(path)
    except FileNotFoundError:
        return False


def forget(path: Path) -> None:
    """Makes a kernel count as not there."""
    _record(path).unlink(missing_ok=True)


def add(path: Path, build: Callable[[Path], None]) -> None:
    """Puts a kernel into the folder, unless another process has done so meanwhile, and clears away what is old.

    Args:
        build: makes and tests the kernel at the path that it is given.

    Raises:
        RuntimeError: `build` failed, now or within the last hour.
        OSError: the disk is full or slow, or another process has been building for too long.
    """
    with _locked(path.parent):
        if is_tested(path):
            return
        failure = _recent_failure(path)
        if failure is not None:
            raise RuntimeError(failure)
        try:
            _replace(path, build)
        except Exception as error:
            with contextlib.suppress(OSError):
                _failure(path).write_text(str(error), "utf-8")
            raise
        with contextlib.suppress(OSError):
            _failure(path).unlink(missing_ok=True)
            _clear(path.parent)


def _replace(path: Path, build: Callable[[Path], None]) -> None:
    """Builds beside `path`, and renames at the end, so that the file is always complete."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-", ignore_cleanup_errors=True) as workspace:
        part = Path(workspace) / path.name
        build(part)
        part.chmod(0o600)  # compilers leave it to the umask, under which a group may write
        record = Path(workspace) / _record(path).name
        record.write_text(_sha256(part))
        record.chmod(0o600)
        forget(path)
        part.replace(path)
        record.replace(_record(path))


def _clear(folder: Path) -> None:
    """Deletes all but the newest kernels, failures of long ago, and what a crash left half built."""
    now = time.time()
    for path in sorted(folder.glob("kernel-*.so"), key=lambda path: path.stat().st_mtime)[: -KEPT - 1]:
        forget(path)
        path.unlink(missing_ok=True)
    for path in folder.glob("kernel-*.failed"):
        if _age(path, now) > SECONDS_BETWEEN_ATTEMPTS:
            path.unlink(missing_ok=True)
    for path in folder.glob("building-*"):
        if _age(path, now) > _SECONDS_UNTIL_LEFTOVER:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within it no other process or thread is within it; the end of a process ends its lock."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    with (folder / "lock").open("ab") as file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has been building in {folder} for {SECONDS_TO_WAIT} s")
            time.sleep(0.1)
        try:
            yield
        finally:
            _unlock(file)


def _recent_failure(path: Path) -> str | None:
    failure = _failure(path)
    try:
        if _age(failure, time.time()) > SECONDS_BETWEEN_ATTEMPTS:
            return None
        return f"{failure.read_text('utf-8')} (within the last hour; delete {failure} to try again at once)"
    except FileNotFoundError:
        return None


def _age(path: Path, now: float) -> float:
    return now - path.stat().st_mtime


def _record(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _failure(path: Path) -> Path:
    return path.with_suffix(".failed")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_private(path: Path) -> bool:
    """Whether it is this user's and nobody else may write to it."""
    if not hasattr(os, "geteuid"):  # Windows, where the rights of a user's profile see to it
        return True
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022
