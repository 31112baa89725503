"""Commands that fail loudly and end in time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping


def run(command: list[str], seconds: float, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command and returns its standard output.

    Args:
        seconds: how long it may take. Then it is killed, with all processes that it started.
        environment: the variables that it sees; None for those of this process.

    Raises:
        RuntimeError: it fails, crashes or takes too long; the text is one line.
        OSError: it cannot be started.
    """
    # Files rather than pipes: a pipe stays open, and reading it waits, for as long as any grandchild lives.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except BaseException as error:
            _kill(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"{command[0]} timed out after {seconds} s") from error
            raise
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    if status:
        raise RuntimeError(f"{command[0]} {_ending(status)}: {_reason(texts[1])}")
    return texts[0]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that still runs, and on POSIX its group, which is its own."""
    if process.returncode is None and hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _ending(status: int) -> str:
    if status > 0:
        return f"failed with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _reason(errors: str) -> str:
    """The line that says most: a compiler's first error, otherwise the last line, as of a Python traceback."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror:", line)), lines[-1] if lines else "it says nothing")
