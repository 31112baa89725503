from typing import Any

import pytest
import torch

from feedback_transformer_pytorch.recurrence import kernel_self_test, stepwise


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ([1.0, 1.0, 1.0], None),
        ([1.0, 1.0, 1.2], "its float64 results are wrong by 0.2, more than 1e-10"),
        ([1.0, 1.0, torch.nan], "its float64 results are wrong by nan, more than 1e-10"),
        ([torch.nan, 1.0, 1.0], "its float64 results are wrong by nan, more than 1e-10"),
    ],
)
def test_every_result_counts(numbers: list[float], verdict: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def results(walk: Any, *_: Any) -> list[torch.Tensor]:
        return [torch.tensor(1.0 if walk is stepwise else number, dtype=torch.float64) for number in numbers]

    monkeypatch.setattr(kernel_self_test, "_results", results)
    monkeypatch.setattr(kernel_self_test, "library", object)
    for name in ("set_num_threads", "use_deterministic_algorithms"):
        monkeypatch.setattr(torch, name, lambda *_: None)
    assert kernel_self_test.self_test() == verdict
