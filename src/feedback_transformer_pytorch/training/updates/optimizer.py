"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..options import Decay

FLOOR = 0.1  # the cosine ends at this fraction of the highest learning rate


def build_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) that decays matrices only, not gains, biases and layer weights."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99))


def learning_rate(update: int, *, peak: float, warmup_updates: int, max_updates: int, decay: Decay = "cosine") -> float:
    """The learning rate of `update`, counted from 0: a linear rise to `peak`, then a half cosine to a tenth or none.

    It is a pure function of the update, so a checkpoint stores nothing of the schedule.
    """
    if update < warmup_updates:
        return peak * (update + 1) / warmup_updates
    if decay == "none":
        return peak
    progress = (update - warmup_updates) / max(1, max_updates - warmup_updates)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))
