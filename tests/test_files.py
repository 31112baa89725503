import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from feedback_transformer_pytorch import files
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.files import append_line, check_can_be_made, write_atomically


def fail_with(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    if call == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail_with(code))
    else:
        monkeypatch.setattr(files.Path, "replace", fail_with(code))
    with pytest.raises(InputError, match=f"file cannot be written: {os.strerror(code)}"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_lines_are_appended(tmp_path: Path) -> None:
    append_line(tmp_path / "lines", "a")
    append_line(tmp_path / "lines", "b")
    assert (tmp_path / "lines").read_text() == "a\nb\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")  # noqa: PTH110
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.symlink_to("/dev/full")
    with pytest.raises(InputError, match="lines cannot be written: No space left on device"):
        append_line(path, "a")


def test_a_line_that_does_not_fit_leaves_no_part_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    append_line(path, "whole")
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(InputError, match="lines cannot be written"):
            append_line(path, "longer than what is left")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "whole\n"


def test_a_folder_that_cannot_be_made_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_can_be_made(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/run cannot be made, because .*file is a file; choose another place"):
        check_can_be_made(tmp_path / "file" / "run")
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="b cannot be written: .* is not writable; choose another place"):
        check_can_be_made(tmp_path / "a" / "b")
