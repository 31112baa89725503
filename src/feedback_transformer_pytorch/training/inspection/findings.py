"""What a model does at each token of a passage, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ...generation.reader import READ_AT_ONCE
from ...model import FeedbackTransformer
from ...tasks import IGNORE
from .passage import Passage

GUESSES = 5  # of the likeliest predictions

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found at the n tokens that are shown, numbers `first` to `first` + n of the passage.

    Attributes:
        passage: what was read.
        attention: (L, H, n, W), how much each head of each token takes from the token that stands d places before it,
            for d from 0 to W - 1 = M + S - 1.
        bits: (n,), the bits that each token takes, or its label; NaN where nothing is to be predicted.
        guesses: (n, 5), the likeliest predictions at each token; their probabilities are `chances`.
        chances: (n, 5).
        mix: (L+1,), the weights by which the memory mixes the embedding and the states of all layers.
        norms: (L+1, n), the norms of these states.
        shares: (L+1, n), how much of the mix each of them makes, in the mix's direction: they sum to 1, and one that
            points away from the mix is negative.
    """

    passage: Passage
    attention: Floats
    bits: Floats
    guesses: npt.NDArray[np.int64]
    chances: Floats
    mix: Floats
    norms: Floats
    shares: Floats

    @property
    def words(self) -> list[str]:
        """The n tokens as text."""
        return [self.passage.word(token) for token in self.passage.tokens[self.passage.first :]]

    def by_distance(self) -> Floats:
        """(L, H, W), the mean attention to the token d places before; NaN where there never is one."""
        count = self.attention.shape[2]
        places = self.passage.first + np.arange(count)[:, None] - np.arange(self.attention.shape[3])
        found = np.where(places >= 0, 1, 0).sum(0)
        with np.errstate(invalid="ignore"):
            return (np.where(places >= 0, self.attention, 0).sum(2) / found).astype(np.float32)


@torch.no_grad()
def look(model: FeedbackTransformer, passage: Passage) -> Findings:
    """Reads a passage, block by block, with the memory carried.

    Args:
        model: in evaluation mode.
    """
    seq_len, device, memory = model.config.seq_len, model.layer_weight.device, None
    block_len = -(-READ_AT_ONCE // seq_len) * seq_len
    # The block in which the first token is predicted, or its label.
    begin = max(0, passage.first - passage.predicts_next) // block_len * block_len
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(passage.tokens), block_len):
        block = torch.from_numpy(passage.tokens[None, start : start + block_len]).to(device)
        if start < begin:
            _, memory = model(block, memory, return_memory=True)
            continue
        details = model(block, memory, True, return_attention=True, return_states=True)
        memory = details.memory
        attention = _by_distance(details.attention[0], model.config.mem_len + seq_len)
        parts.append((attention, details.states[:, 0].float(), details.output[0].float().log_softmax(-1)))
    attention, states, log_probabilities = (torch.cat(part, dim=-2) for part in zip(*parts, strict=True))
    targets = torch.from_numpy(passage.targets[begin:]).to(device)
    shown = slice(passage.first - begin, None)
    states, mix = states[:, shown], _mix(model)
    chances, guesses = log_probabilities[shown].exp().topk(min(GUESSES, passage.num_tokens))
    return Findings(
        passage=passage,
        attention=_numpy(attention[:, :, shown]),
        bits=_numpy(_bits(log_probabilities, targets, passage.predicts_next)[shown]),
        guesses=guesses.cpu().numpy(),
        chances=_numpy(chances),
        mix=_numpy(mix),
        norms=_numpy(states.norm(dim=-1)),
        shares=_numpy(_shares(states, mix)),
    )


def _by_distance(attention: Tensor, window: int) -> Tensor:
    """Attention by place (L, H, T, n + T) to attention by distance (L, H, T, W)."""
    time = attention.shape[-2]
    query = torch.arange(attention.shape[-1] - time, attention.shape[-1], device=attention.device)
    place = query[:, None] - torch.arange(window, device=attention.device)
    by_distance = attention.gather(-1, place.clamp(min=0).expand(*attention.shape[:2], -1, -1))
    return by_distance.masked_fill(place < 0, 0)


def _bits(log_probabilities: Tensor, targets: Tensor, predicts_next: bool) -> Tensor:
    """Log probabilities (T, V) and targets (T,) to bits (T,) of each token or its label; NaN where there are none."""
    nats = F.nll_loss(log_probabilities, targets, reduction="none", ignore_index=IGNORE)
    bits = (nats / math.log(2)).masked_fill(targets == IGNORE, math.nan)
    if predicts_next:
        bits = torch.cat([bits.new_full((1,), math.nan), bits[:-1]])
    return bits


def _mix(model: FeedbackTransformer) -> Tensor:
    """(L+1,), the weights of what the memory stores."""
    stored, weight = model.config.stored, model.layer_weight
    if stored == "mix":
        return weight.softmax(0)
    layer = torch.tensor(model.config.depth if stored == "top" else stored, device=weight.device)
    return F.one_hot(layer, len(weight)).to(weight.dtype)


def _shares(states: Tensor, mix: Tensor) -> Tensor:
    """(L+1, n), from states (L+1, n, D) and their weights (L+1,)."""
    parts = states * mix[:, None, None]
    mixed = parts.sum(0)
    return (parts * mixed).sum(-1) / mixed.square().sum(-1)


def _numpy(tensor: Tensor) -> Any:
    return tensor.float().cpu().numpy()
