"""Bits per byte of a general-purpose compressor, `xz -9`: the figure to compare a model's with."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from ...errors import InputError

XZ_DICTIONARY = 64 * 2**20  # bytes that `xz -9` looks back


class XzError(Exception):
    """xz ended without a result, because it had too little memory or was killed."""


@dataclass(frozen=True)
class XzFigures:
    """Bits per byte of `xz -9` on the held-out text.

    Attributes:
        alone: of the text compressed by itself.
        after_training: of the bytes that it adds to the compressed training text; None if the two texts together are
            longer than xz looks back.
    """

    alone: float
    after_training: float | None

    def __str__(self) -> str:
        if self.after_training is None:
            return f"xz -9: {self.alone:.3f} alone; the training text is longer than xz looks back"
        return f"xz -9: {self.alone:.3f} alone, {self.after_training:.3f} after the training text"


def xz_bits_per_byte(text: bytes, before: bytes = b"") -> float:
    """Bits that `xz -9` takes for each byte of `text`. Compression takes about 0.7 GB of memory.

    Args:
        before: if given, the result counts only the bits that `text` adds to the compressed `before`. As a model does,
            xz then learns from `before` first, but from its last 64 MiB only.

    Raises:
        InputError: `text` is empty.
        XzError: there is no result.
    """
    if not text:
        raise InputError("the text is empty, so it has no bits per byte; give at least one byte")
    size = _xz_size(before + text)
    if before:
        size -= _xz_size(before)
    return 8 * size / len(text)


def _xz_size(text: bytes) -> int:
    # In another process: otherwise its memory would count in the peak memory of the run.
    script = "import lzma, sys; print(len(lzma.compress(sys.stdin.buffer.read(), preset=9)))"
    try:
        done = subprocess.run([sys.executable, "-I", "-c", script], input=text, capture_output=True, check=False)
    except OSError as error:
        raise XzError(f"xz -9 did not start: {error.strerror}") from error
    if done.returncode:
        raise XzError(f"xz -9 ended with code {done.returncode}")
    return int(done.stdout)
