import random
import sys
from pathlib import Path

import pytest

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.evaluation.xz import XzError, xz_bits_per_byte


def test_incompressible_bytes_take_eight_bits_each() -> None:
    assert xz_bits_per_byte(random.Random(0).randbytes(20_000)) == pytest.approx(8.0, abs=0.1)


def test_a_text_that_stood_before_costs_almost_nothing() -> None:
    text = random.Random(0).randbytes(20_000)
    assert xz_bits_per_byte(text, before=text) < 0.2
    assert xz_bits_per_byte(text, before=random.Random(1).randbytes(20_000)) == pytest.approx(8.0, abs=0.1)


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        xz_bits_per_byte(b"", before=b"text")


@pytest.mark.parametrize(
    ("program", "message"),
    [("#!/bin/sh\nkill -9 $$\n", "xz -9 ended with code -9"), (None, "xz -9 did not start: No such file")],
)
def test_a_process_that_is_killed_or_does_not_start_has_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, message: str
) -> None:
    python = tmp_path / "python"
    if program is not None:
        python.write_text(program)
        python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(XzError, match=message):
        xz_bits_per_byte(b"text")
