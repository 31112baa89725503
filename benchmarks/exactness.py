"""No number is worth reporting while a test of exactness is red."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_stepwise.py", "tests/test_fused.py", "tests/test_native.py")


def require_exact() -> None:
    """Runs the tests of exactness.

    Raises:
        SystemExit: one is red.
    """
    files = [test for test in TESTS if (ROOT / test).exists()]
    if subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", *files], cwd=ROOT).returncode:
        raise SystemExit("the tests of exactness are red: nothing is measured")
