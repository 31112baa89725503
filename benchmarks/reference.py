"""Version 0.0.11 of this package, for comparison.

It shares our distribution and import name, so it is installed beside the environment, not into it, and its one
module is loaded under a name of its own.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "0.0.11"
FOLDER = Path(__file__).parents[1] / ".cache" / f"reference-{VERSION}"
SOURCE = FOLDER / "feedback_transformer_pytorch" / "feedback_transformer_pytorch.py"


class ReferenceUnavailable(RuntimeError):  # noqa: N818 - a state of the machine, not a fault of the caller
    """Version 0.0.11 cannot be had; the text says why."""


@functools.cache
def load_reference() -> type:
    """Returns the `FeedbackTransformer` class of version 0.0.11, installed from the package index on first use.

    Raises:
        ReferenceUnavailable: the index cannot be reached, or einops is not installed.
    """
    if importlib.util.find_spec("einops") is None:
        raise ReferenceUnavailable(f"version {VERSION} needs einops, which comes with the 'dev' extra")
    if not SOURCE.exists():
        _install()
    spec = importlib.util.spec_from_file_location("reference_0_0_11", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FeedbackTransformer


def _install() -> None:
    FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        target = Path(scratch) / FOLDER.name
        package = f"feedback-transformer-pytorch=={VERSION}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        pip = subprocess.run([*command, "--no-deps", "--target", target, package], capture_output=True, text=True)
        if pip.returncode:
            reason = pip.stderr.strip().splitlines() or [f"pip ended with {pip.returncode}"]
            raise ReferenceUnavailable(f"cannot install {package}: {reason[-1]}")
        try:
            target.rename(FOLDER)
        except OSError:
            # Another process was faster; its copy is the same.
            if not SOURCE.exists():
                raise
