import random

import pytest

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.evaluation.xz import xz_bits_per_byte


def test_incompressible_bytes_take_eight_bits_each() -> None:
    assert xz_bits_per_byte(random.Random(0).randbytes(20_000)) == pytest.approx(8.0, abs=0.1)


def test_a_text_that_stood_before_costs_almost_nothing() -> None:
    text = random.Random(0).randbytes(20_000)
    assert xz_bits_per_byte(text, before=text) < 0.2
    assert xz_bits_per_byte(text, before=random.Random(1).randbytes(20_000)) == pytest.approx(8.0, abs=0.1)


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        xz_bits_per_byte(b"", before=b"text")
