import pytest
import torch
from torch import nn

from feedback_transformer_pytorch.training.updates.optimizer import build_optimizer, learning_rate


def test_the_learning_rate_rises_linearly_and_falls_to_a_tenth() -> None:
    rates = [learning_rate(update, peak=2.0, warmup_updates=4, max_updates=100) for update in range(101)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[52] == pytest.approx(1.1)
    assert rates[100] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_without_warm_up_or_within_it_the_learning_rate_is_defined() -> None:
    assert learning_rate(0, peak=2.0, warmup_updates=0, max_updates=1) == 2.0
    assert learning_rate(4, peak=2.0, warmup_updates=5, max_updates=5) == 2.0


def test_without_decay_the_learning_rate_stays_after_its_rise() -> None:
    rates = [learning_rate(update, peak=2.0, warmup_updates=4, max_updates=9, decay="none") for update in range(10)]
    assert rates == [0.5, 1.0, 1.5, *[2.0] * 7]


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    optimizer = build_optimizer(model, lr=0.1, weight_decay=0.5)
    decaying, free = optimizer.param_groups
    assert [p.shape for p in decaying["params"]] == [torch.Size([5, 4]), torch.Size([3, 4])]
    assert decaying["weight_decay"] == 0.5
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert free["weight_decay"] == 0.0
