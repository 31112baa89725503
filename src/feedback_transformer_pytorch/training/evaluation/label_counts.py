"""How many labels of sequences or of a stream a model predicts. B sequences, T positions, R rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data import padded
from ...tasks import IGNORE, Labelled
from .reading import read_rows, split_rows

LOGITS = 2**20  # numbers of logits in one call of the model; the scores of a Transformer take many times as many


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """What a model predicted.

    Attributes:
        labels, right: (T,) labels at each position, and how many of them are right; of a stream in all, (1,).
        nats: the loss of all labels.
        sequences, last_right: sequences with a label, and how many last labels are right; 0 for a stream.
    """

    labels: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    nats: float
    sequences: int = 0
    last_right: int = 0

    def __add__(self, other: LabelCounts) -> LabelCounts:
        """Both parts of a stream together."""
        return LabelCounts(self.labels + other.labels, self.right + other.right, self.nats + other.nats)

    @property
    def accuracy(self) -> float:
        """The share of right labels."""
        return float(self.right.sum() / self.labels.sum())

    @property
    def accuracy_last(self) -> float | None:
        """The share of right last labels of sequences; None for a stream."""
        return self.last_right / self.sequences if self.sequences else None

    @property
    def loss(self) -> float:
        """Nats per label."""
        return self.nats / int(self.labels.sum())

    @property
    def by_position(self) -> list[float | None] | None:
        """The share of right labels at each position, None where there is no label; None for a stream."""
        if not self.sequences:
            return None
        return [int(r) / int(n) if n else None for r, n in zip(self.right, self.labels, strict=True)]


@torch.no_grad()
def count_sequences(
    model: nn.Module, sequences: Sequence[Labelled], after_block: Callable[[int], None] | None = None
) -> LabelCounts:
    """Predicts all labels of sequences, each from an empty memory.

    Args:
        model: a model with the interface that `build_model` describes. Its training mode is restored afterwards.
        sequences: tokens and labels (T,) each, of any lengths; at least one label is not IGNORE.
        after_block: called after each call of the model with the number of positions in it.
    """
    ordered = sorted(sequences, key=lambda sequence: len(sequence.tokens))
    longest = len(ordered[-1].tokens)
    labels, right = np.zeros(longest, np.int64), np.zeros(longest, np.int64)
    nats, with_label, last_right, done = 0.0, 0, 0, 0
    while done < len(ordered):
        batch = padded(ordered[done : done + _rows(model, longest)])
        done += len(batch.tokens)
        width = batch.tokens.shape[1]
        for _, logits in read_rows(model, batch.tokens, block_len=width):
            mask, hits, loss = _compare(logits, batch.labels)
            nats += loss
        labels[:width] += mask.sum(0)
        right[:width] += hits.sum(0)
        last = np.where(mask, np.arange(width), -1).max(1)
        with_label += int((last >= 0).sum())
        last_right += int(hits[np.arange(len(last)), last].sum())
        if after_block is not None:
            after_block(batch.tokens.size)
    return LabelCounts(labels, right, nats, with_label, last_right)


@torch.no_grad()
def count_stream(
    model: nn.Module,
    stream: Labelled,
    *,
    block_len: int,
    lead: int = 0,
    rows: int = 1,
    after_block: Callable[[int], None] | None = None,
) -> LabelCounts:
    """Predicts the labels of a stream that follow its first `lead` tokens; a model carries its memory through it.

    Args:
        model: a model with the interface that `build_model` describes. Its training mode is restored afterwards.
        stream: tokens and labels (lead + N,).
        block_len, lead, rows: as in `text_bits`, which explains how several rows are read in parallel.
        after_block: called after each block with the number of positions in it.
    """
    tokens, labels_of_rows = (split_rows(values, lead=lead, rows=rows) for values in stream)
    labels = right = 0
    nats = 0.0
    for places, logits in read_rows(model, tokens, block_len=block_len):
        first = max(0, lead - places.start)
        mask, hits, loss = _compare(logits[:, first:], labels_of_rows[:, places][:, first:])
        labels, right, nats = labels + int(mask.sum()), right + int(hits.sum()), nats + loss
        if after_block is not None:
            after_block(logits.shape[0] * logits.shape[1])
    return LabelCounts(np.array([labels]), np.array([right]), nats)


def _rows(model: nn.Module, length: int) -> int:
    """How many sequences to read in one call, so that the logits fit well in memory."""
    words: int = model.to_logits.out_features  # type: ignore[union-attr, assignment]
    return max(1, LOGITS // (length * max(words, 64)))


def _compare(
    logits: Tensor, labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], float]:
    """Which labels count and which of those are right, (R, t) each, and the loss of all."""
    targets = torch.from_numpy(labels.astype(np.int64)).to(logits.device)
    nats = F.cross_entropy(logits.transpose(1, 2).float(), targets, ignore_index=IGNORE, reduction="sum")
    hits = (logits.argmax(-1) == targets).cpu().numpy()
    mask = labels != IGNORE
    return mask, hits & mask, nats.item()
