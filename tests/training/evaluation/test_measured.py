from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feedback_transformer_pytorch.training.evaluation.measured import measure_rows
from feedback_transformer_pytorch.training.objective import Metric

SQUARED = Metric("squared", "squared error", "{:.1f}", "{:.1f} of {targets}", higher_is_better=False)


class Sizes:
    """An objective of somebody else: the first logit is to be near each target above 0."""

    metrics = (SQUARED,)

    def mask(self, targets: Tensor) -> Tensor:
        return targets > 0

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.nats(logits, targets) / self.mask(targets).sum()

    def nats(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._errors(logits, targets).sum()

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        errors = self._errors(logits, targets)
        return {"targets": self.mask(targets), "errors": errors.long(), "rows": self.mask(targets).any(1)}

    def values(self, loss: float, sums: Mapping[str, float]) -> dict[str, float]:
        return {"squared": sums["errors"] / sums["targets"]} if sums["targets"] else {}

    def _errors(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits[..., 0] - targets).square() * self.mask(targets)


class Echo(nn.Module):
    """Its first logit is the token, by ten larger for each token read before in the row."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, memory: int | None, return_memory: bool) -> tuple[Tensor, int]:
        before = memory or 0
        places = before + torch.arange(x.shape[1])
        return (x + 10 * places)[..., None].float(), before + x.shape[1]


@pytest.mark.parametrize("block_len", [1, 2, 5])
@pytest.mark.parametrize("lead", [0, 3])
def test_any_objective_is_measured_block_by_block(block_len: int, lead: int) -> None:
    tokens, targets = np.zeros((2, 5), np.int64), np.array([[0, 1, 0, 29, 40], [3, 10, 0, 30, 0]])
    errors = np.array([[0, 81, 0, 1, 0], [9, 0, 0, 0, 0]])
    read: list[int] = []
    found = measure_rows(
        Echo(), Sizes(), tokens, targets, block_len=block_len, lead=lead, positions=targets, after_block=read.append
    )
    count = np.count_nonzero(targets[:, lead:])
    assert (found.targets, found.nats) == (count, errors[:, lead:].sum())
    assert found.sums == {"targets": count, "errors": errors[:, lead:].sum()}
    assert found.values == {"squared": found.loss}
    assert len(found.by_position) == 41
    assert {place: value for place, value in enumerate(found.by_position) if value is not None} == dict(
        zip(targets[:, lead:][targets[:, lead:] > 0], errors[:, lead:][targets[:, lead:] > 0], strict=True)
    )
    assert sum(read) == 10


def test_rows_count_only_if_they_are_whole() -> None:
    rows = np.array([[0, 1], [0, 0]])
    parts, whole = (measure_rows(Echo(), Sizes(), rows, rows, block_len=2, whole_rows=flag) for flag in (False, True))
    assert whole.sums == {**parts.sums, "rows": 1}
    assert (whole + whole).sums == {name: 2 * value for name, value in whole.sums.items()}
    assert parts.by_position is None
