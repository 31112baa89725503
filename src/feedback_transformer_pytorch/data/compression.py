"""What a general-purpose compressor makes of a text: the figure to set beside a model's."""

from __future__ import annotations

import subprocess
import sys

from ..errors import InputError


def xz_bits_per_byte(text: bytes, before: bytes = b"") -> float:
    """Return the bits that `xz -9` takes for each byte of `text`.

    With `before`, the bits that `text` adds to the compressed `before`: what xz reaches when it may, as a model does,
    first learn from the training text. It looks back 64 MiB; what lies further before is no help to it.
    Compression takes about 0.7 GB of memory while it runs.

    Raises:
        InputError: `text` is empty.
    """
    if not text:
        raise InputError("the text is empty, so it has no bits per byte; give one byte or more")
    size = _xz_size(before + text)
    if before:
        size -= _xz_size(before)
    return 8 * size / len(text)


def _xz_size(text: bytes) -> int:
    # In a process of its own, as the memory it takes would otherwise stay the largest that a run ever has.
    script = "import lzma, sys; print(len(lzma.compress(sys.stdin.buffer.read(), preset=9)))"
    done = subprocess.run([sys.executable, "-I", "-c", script], input=text, capture_output=True, check=True)
    return int(done.stdout)
