import subprocess
import sys
from pathlib import Path

import pytest

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.saving.lock import LOCK, locked

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "wb")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_directory_is_locked_once_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    for _ in range(2):
        with (
            locked(run),
            pytest.raises(InputError, match="run is being trained by another process; wait until it ends, or choose"),
            locked(run),
        ):
            pass
    assert [entry.name for entry in run.iterdir()] == [LOCK]


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="is being trained by another process"), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with locked(tmp_path):
            pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run cannot be written"), locked(tmp_path / "file" / "run"):
        pass
