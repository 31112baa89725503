"""A rounded Linear by the kernel is the Linear."""

import copy

import pytest
import torch
from torch import Tensor, nn

from feedback_transformer_pytorch.recurrence.layout.rounding import round_linears
from feedback_transformer_pytorch.recurrence.native import kernel
from feedback_transformer_pytorch.recurrence.native.library import NARROW, library
from feedback_transformer_pytorch.recurrence.native.product import narrow_linear


@pytest.fixture(autouse=True)
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(kernel, "WORK_OF_A_THREAD", 0)


def linear(inputs: int, outputs: int, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    module = nn.Linear(inputs, outputs, bias)
    round_linears(module, dtype)
    return module


@torch.no_grad()
def error_and_largest(module: nn.Linear, x: Tensor) -> tuple[float, float]:
    exact, found = copy.deepcopy(module).double()(x.double()), narrow_linear(module)(x)
    return float((found - exact).abs().max()), float(exact.abs().max())


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 50), (40, 257), (129, 33), (64, 64)])
@pytest.mark.parametrize("rows", [1, 2, 13, 256, 257])
def test_it_is_the_linear(rows: int, inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
    error, largest = error_and_largest(linear(inputs, outputs, dtype, bias), torch.randn(rows, inputs))
    assert error <= 1e-6 * largest * inputs**0.5 + 1e-7


def test_x_may_be_a_view() -> None:
    module, x = linear(8, 5, torch.int8), torch.randn(8, 6).t()
    torch.testing.assert_close(narrow_linear(module)(x), module(x).detach())


def test_what_the_kernel_does_not_know_stays_a_module() -> None:
    class Other(nn.Linear):
        pass

    plain = nn.Linear(8, 8)
    other = Other(8, 8)
    other.load_state_dict(linear(8, 8, torch.int8).state_dict())
    hooked = linear(8, 8, torch.int8)
    hooked.register_forward_hook(lambda *_: None)
    for module in (plain, other, hooked, linear(8, 8, torch.int8).double(), nn.Identity()):
        assert narrow_linear(module) is module
    with torch.autocast("cpu", torch.bfloat16):
        module = linear(8, 8, torch.int8)
        assert narrow_linear(module) is module
