"""Weights rounded to types of fewer bytes (`recurrence/layout/rounding.py`)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from feedback_transformer_pytorch.recurrence.layout.rounding import (
    LARGEST,
    narrowest_type,
    round_linears,
    rounded,
    row_scales,
)


def weight(rows: int = 300, seed: int = 0) -> Tensor:
    """Rows of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-30, 30, rows)[:, None]
    return torch.randn(rows, 7, generator=generator) * sizes


@given(st.integers(0, 10_000))
def test_int8_is_whole_numbers_times_a_scale_of_the_row(seed: int) -> None:
    before = weight(seed=seed)
    scales, after = row_scales(before), rounded(before, torch.int8)
    whole = after / scales
    assert torch.equal(whole, whole.round())
    assert torch.equal(whole.abs().amax(1), torch.full((len(whole),), float(LARGEST)))
    assert torch.equal(whole.to(torch.int8) * scales, after)
    # The largest may be a quarter of a step beyond the last whole number, all others are within half a step.
    assert bool(((after - before).abs() <= 0.501 * scales).all())


@given(st.integers(0, 10_000))
def test_rounding_a_second_time_changes_nothing(seed: int) -> None:
    for dtype in (torch.int8, torch.bfloat16):
        once = rounded(weight(seed=seed), dtype)
        assert torch.equal(rounded(once, dtype), once)
        assert torch.equal(rounded(once.double(), dtype), once.double())


def test_rows_of_almost_nothing_are_zero() -> None:
    rows = torch.tensor([[0.0, 0.0], [1e-44, -1e-40], [-3e-38, 1e-37]])
    assert torch.equal(rounded(rows, torch.int8), torch.zeros(3, 2))


def test_what_is_not_a_number_stays_so() -> None:
    rows = torch.tensor([[1.0, torch.nan], [1.0, torch.inf], [1.0, 2.0]])
    assert rounded(rows, torch.int8).isnan().any(1).tolist() == [True, True, False]
    assert narrowest_type([rounded(rows, torch.int8)]) is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_the_narrowest_type_is_found(dtype: torch.dtype) -> None:
    weights = [rounded(weight(seed=seed), dtype) for seed in range(3)]
    assert narrowest_type(weights) == dtype
    weights[2][-1, -1] *= 1 + 2**-20
    assert narrowest_type(weights) is None


def test_the_linears_of_a_module_are_rounded_and_nothing_else() -> None:
    module = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 4), nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 3)))
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    round_linears(module, torch.int8)
    for name, parameter in module.named_parameters():
        expected = rounded(before[name], torch.int8) if name in ("1.weight", "3.0.weight") else before[name]
        assert torch.equal(parameter, expected), name
