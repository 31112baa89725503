import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feedback_transformer_pytorch import FeedbackTransformer
from feedback_transformer_pytorch.data import ByteTokenizer, Tokens
from feedback_transformer_pytorch.training.evaluation.text_bits import text_bits
from feedback_transformer_pytorch.training.objective import NextToken

ROUNDING = 1e-5  # 100 roundings by half an ulp of float32 amount to 6e-6; what a test is about changes the fourth digit


def bits_per_byte(model: nn.Module, *arguments: Any, **settings: Any) -> float:
    return text_bits(model, NextToken(), *arguments, **settings).values["bits_per_byte"]


def new_model(seq_len: int) -> FeedbackTransformer:
    """In float64. What the logits cost is summed in float32."""
    return FeedbackTransformer(
        num_tokens=256, dim=16, depth=2, heads=2, dim_head=8, seq_len=seq_len, mem_len=8
    ).double()


@pytest.fixture
def model() -> FeedbackTransformer:
    return new_model(seq_len=2)


@pytest.fixture
def tokens() -> Tokens:
    return np.random.default_rng(0).integers(0, 256, 101).astype(np.uint8)


@pytest.mark.parametrize("block_len", [2, 8, 30, 200])
def test_the_memory_is_carried_through_the_whole_text(
    model: FeedbackTransformer, tokens: Tokens, block_len: int
) -> None:
    x = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.no_grad():
        nats = F.cross_entropy(model(x[:, :-1])[0], x[0, 1:])
    bits = bits_per_byte(model, tokens, ByteTokenizer(), block_len=block_len)
    assert bits == pytest.approx(nats.item() / math.log(2), rel=ROUNDING)


@pytest.mark.parametrize("lead", [1, 5, 16])
def test_the_lead_is_read_but_not_counted(model: FeedbackTransformer, tokens: Tokens, lead: int) -> None:
    x = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.no_grad():
        nats = F.cross_entropy(model(x[:, :-1])[0, lead - 1 :], x[0, lead:])
    bits = bits_per_byte(model, tokens, ByteTokenizer(), block_len=8, lead=lead)
    assert bits == pytest.approx(nats.item() / math.log(2), rel=ROUNDING)


def test_each_row_reads_its_part_after_its_lead(model: FeedbackTransformer, tokens: Tokens) -> None:
    lead, rows = 11, 3
    part = (len(tokens) - lead) // rows
    windows = [tokens[row * part : row * part + lead + part] for row in range(rows)]
    alone = [bits_per_byte(model, window, ByteTokenizer(), block_len=8, lead=lead) for window in windows]
    together = bits_per_byte(model, tokens, ByteTokenizer(), block_len=8, lead=lead, rows=rows)
    assert together == pytest.approx(sum(alone) / rows, rel=ROUNDING)


@pytest.mark.parametrize(("seq_len", "block_len"), [(1, 8), (1, 200), (2, 200)])
def test_with_resets_each_document_is_read_alone(tokens: Tokens, seq_len: int, block_len: int) -> None:
    """Up to the first token of the next one, which is predicted before the memory is emptied."""
    model = new_model(seq_len)
    resets = np.isin(np.arange(len(tokens)), (0, 7, 8, 50))
    documents = [tokens[0:8], tokens[7:9], tokens[8:51], tokens[50:]]
    alone = [(len(d) - 1) * bits_per_byte(model, d, ByteTokenizer(), block_len=block_len) for d in documents]
    together = bits_per_byte(model, tokens, ByteTokenizer(), block_len=block_len, resets=resets)
    assert together == pytest.approx(sum(alone) / (len(tokens) - 1), rel=ROUNDING)
    assert together != pytest.approx(bits_per_byte(model, tokens, ByteTokenizer(), block_len=block_len), rel=ROUNDING)


@pytest.mark.parametrize("rows", [1, 3])
def test_resets_are_cut_into_rows_as_the_text_is(model: FeedbackTransformer, tokens: Tokens, rows: int) -> None:
    lead, part = 11, (len(tokens) - 11) // rows
    resets = np.isin(np.arange(len(tokens)), (0, 4, 30, 44, 71))
    windows = [slice(row * part, row * part + lead + part) for row in range(rows)]
    settings = {"block_len": 8, "lead": lead}
    alone = [bits_per_byte(model, tokens[w], ByteTokenizer(), resets=resets[w], **settings) for w in windows]
    together = bits_per_byte(model, tokens, ByteTokenizer(), rows=rows, resets=resets, **settings)
    assert together == pytest.approx(sum(alone) / rows, rel=ROUNDING)


class Uniform(nn.Module):
    """Knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, memory: None, return_memory: bool) -> tuple[Tensor, None]:
        return torch.zeros(*x.shape, 256), memory


@pytest.mark.parametrize(("lead", "rows"), [(1, 1), (7, 4), (50, 51)])
def test_who_knows_nothing_needs_eight_bits(tokens: Tokens, lead: int, rows: int) -> None:
    read = []
    bits = bits_per_byte(Uniform(), tokens, ByteTokenizer(), block_len=8, lead=lead, rows=rows, after_block=read.append)
    assert bits == pytest.approx(8, rel=ROUNDING)
    assert sum(read) == rows * ((len(tokens) - lead) // rows + lead - 1)


def test_the_mode_of_the_model_is_left_as_it_was(model: FeedbackTransformer, tokens: Tokens) -> None:
    for training in (True, False):
        model.train(training)
        bits_per_byte(model, tokens, ByteTokenizer(), block_len=8)
        assert model.training is training
