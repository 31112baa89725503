import math

import pytest
import torch
from torch.nn import functional as F

from feedback_transformer_pytorch.tasks import IGNORE
from feedback_transformer_pytorch.training.objective import ACCURACY, BITS_PER_BYTE, Labels, NextToken, Objective

TARGETS = torch.tensor([[1, IGNORE, 0], [IGNORE, 2, IGNORE], [IGNORE, IGNORE, IGNORE]])


def logits() -> torch.Tensor:
    """Right at the first and wrong at the last label of row 0, right at the label of row 1."""
    guesses = torch.tensor([[1, 0, 2], [0, 2, 0], [0, 0, 0]])
    return 3.0 * F.one_hot(guesses, 3).float()


def test_text_is_measured_in_bits_per_byte() -> None:
    objective, targets = NextToken(tokens_per_byte=0.5), torch.tensor([[1, 0, 2]])
    assert objective.loss(logits()[:1], targets).item() == pytest.approx(
        F.cross_entropy(logits()[0], targets[0]).item()
    )
    assert objective.mask(targets).all()
    assert objective.measure(logits()[:1], targets) == {}
    assert objective.values(3 * math.log(2), {}) == {"bits_per_byte": pytest.approx(1.5)}
    assert objective.values(math.nan, {"bits": 6.0, "bytes": 4}) == {"bits_per_byte": 1.5}


def test_the_loss_of_labels_is_that_of_those_that_count() -> None:
    right, wrong = math.log(math.exp(3) + 2) - 3, math.log(math.exp(3) + 2)
    assert Labels().loss(logits(), TARGETS).item() == pytest.approx((2 * right + wrong) / 3)


@pytest.mark.parametrize("objective", [NextToken(), Labels()])
def test_nats_are_the_loss_of_all_targets(objective: Objective) -> None:
    targets = torch.tensor([[1, 0, 2], [0, 2, 1]])
    expected = objective.loss(logits()[:2], targets).item() * targets.numel()
    assert objective.nats(logits()[:2], targets).item() == pytest.approx(expected)


def test_accuracy_counts_labels_and_the_last_ones_of_rows() -> None:
    sums = {name: value.sum().item() for name, value in Labels().measure(logits(), TARGETS).items()}
    assert sums == {"labels": 3, "right": 2, "rows": 2, "last_right": 1}
    assert Labels().values(0.0, sums) == {"accuracy": 2 / 3, "accuracy_last": 0.5}
    assert Labels().values(0.0, {"labels": 3, "right": 2}) == {"accuracy": 2 / 3}


def test_a_block_without_labels_has_no_loss_and_no_figures() -> None:
    objective = Labels()
    scores = logits().requires_grad_()
    targets = torch.full_like(TARGETS, IGNORE)
    loss = objective.loss(scores, targets)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))
    assert objective.values(0.0, {n: v.sum().item() for n, v in objective.measure(scores, targets).items()}) == {}


def test_the_best_is_the_highest_accuracy_or_the_lowest_bits() -> None:
    values = {1: 0.5, 2: 0.9, 3: math.nan, 4: 0.1}
    assert ACCURACY.best(values) == 2
    assert BITS_PER_BYTE.best(values) == 4
    assert ACCURACY.best({1: math.nan}) is None
