import sys
import time
from pathlib import Path

import pytest

from feedback_transformer_pytorch.recurrence.native.command import run


def test_it_returns_what_the_command_writes() -> None:
    assert run([sys.executable, "-c", "import os; print(os.environ['NAME'])"], 60, {"NAME": "value"}) == "value\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_what_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    """A compiler is a driver that starts others; these must not go on."""
    ticks = tmp_path / "ticks"
    ticker = f"while :; do echo >>'{ticks}'; sleep 0.05; done"
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="sh timed out after 0.5 s"):
        run(["sh", "-c", f"({ticker}) & wait"], 0.5)
    assert time.monotonic() - began < 10
    count = ticks.stat().st_size
    time.sleep(0.3)
    assert ticks.stat().st_size == count > 0
