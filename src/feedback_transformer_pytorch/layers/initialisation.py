"""What an initialisation changes of PyTorch's own."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def scale_last_linears(layers: nn.ModuleList) -> None:
    """Divides the last Linear of each sub-layer by sqrt(2 L), as the paper's authors do."""
    for name, parameter in layers.named_parameters():
        if "to_out" in name:
            parameter.div_((2 * len(layers)) ** 0.5)
