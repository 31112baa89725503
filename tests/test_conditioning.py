"""The rule for rounding errors, on functions whose condition is known."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from conditioning import EVALUATIONS, NUDGE, ROUNDINGS, Reference

EPS = torch.finfo(torch.float64).eps


class Cancelling(nn.Module):
    """(a + large) - large, which magnifies rounding errors by `large`."""

    def __init__(self, large: float) -> None:
        super().__init__()
        self.a, self.large = nn.Parameter(torch.ones(50, dtype=torch.float64)), large

    def evaluate(self) -> dict[str, Tensor]:
        self.zero_grad()
        out = (self.a + self.large) - self.large
        out.square().sum().backward()
        assert self.a.grad is not None
        return {"out": out, "grad a": self.a.grad}


def moved(values: Mapping[str, Tensor], by: float) -> dict[str, Tensor]:
    return {name: value + by for name, value in values.items()}


@pytest.mark.parametrize("large", [1e2, 1e4, 1e6])
def test_the_bound_is_that_of_the_condition(large: float) -> None:
    model = Cancelling(large)
    reference = Reference(model, model.evaluate)
    reference.assert_agrees(moved(reference.values, large * EPS))
    with pytest.raises(AssertionError, match="errors, as multiples of what rounding explains: {'out': .*, 'grad a'"):
        reference.assert_agrees(moved(reference.values, 4 * ROUNDINGS * large * EPS))
    condition = reference.bound("out") / ROUNDINGS / EPS
    assert 0.5 * large < condition < 1.1 * large
    float32 = torch.finfo(torch.float32).eps
    assert reference.bound("out", float32) / reference.bound("out") == pytest.approx(float32 / EPS)


def test_what_needs_no_evaluation_gets_none_and_parameters_stay() -> None:
    calls, model = [], Cancelling(1e6)
    reference = Reference(model, lambda: calls.append(1) or model.evaluate())
    reference.assert_agrees(moved(reference.values, EPS))
    assert len(calls) == 1
    with pytest.raises(AssertionError):
        reference.assert_agrees(moved(reference.values, 1.0))
    assert len(calls) == 1 + EVALUATIONS
    assert model.a.equal(torch.ones(50))


def test_views_and_what_is_written_in_place_stay() -> None:
    """Else what is written to a view, such as a row of a buffer, would go to a copy."""

    def evaluate() -> dict[str, Tensor]:
        buffer = torch.zeros(2, 3, dtype=torch.float64)
        buffer[0].copy_(torch.ones(3))
        buffer[1].fill_(2.0).mul_(3)
        return {"buffer": buffer}

    reference = Reference(nn.Linear(1, 1), evaluate)
    with pytest.raises(AssertionError):
        reference.assert_agrees({"buffer": reference.values["buffer"] + 1})
    assert reference.bound("buffer") <= ROUNDINGS * EPS * 6 * (1 + NUDGE)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 2.0])
def test_a_wrong_number_is_never_explained(wrong: float) -> None:
    model = Cancelling(1e6)
    reference = Reference(model, model.evaluate)
    found = {name: value.clone() for name, value in reference.values.items()}
    found["grad a"][7] *= wrong
    with pytest.raises(AssertionError, match="grad a"):
        reference.assert_agrees(found)


def test_nothing_may_be_missing_and_what_is_left_out_is_zero() -> None:
    model = Cancelling(1.0)
    reference = Reference(model, model.evaluate)
    with pytest.raises(AssertionError, match="{'grad a'} is missing"):
        reference.assert_agrees({"out": reference.values["out"]})
    reference.assert_agrees({**reference.values, "grad b": torch.zeros(3)})
    with pytest.raises(AssertionError, match="grad b"):
        reference.assert_agrees({**reference.values, "grad b": torch.full((3,), 1e-9)})


def test_a_reference_that_is_not_finite_is_refused() -> None:
    with pytest.raises(AssertionError, match="out is not finite"):
        Reference(nn.Linear(1, 1), lambda: {"out": torch.full((2,), torch.nan, dtype=torch.float64)})
