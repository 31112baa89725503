import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cases import Case, cases
from feedback_transformer_pytorch import FeedbackConfig
from feedback_transformer_pytorch.hf.reading import Progress, read_on, read_whole


@given(cases(), st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_pieces_give_the_states_of_a_longer_text(case: Case, pieces: list[int]) -> None:
    """However it is split: at every token, the state is that of a text whose segments are full."""
    decoder, x, mask = case.model().decoder, embedded(case), case.flags(0.7)
    ends = [end for end in itertools.accumulate(pieces) if end < case.time] + [case.time]
    full = torch.nn.functional.pad(x, (0, 0, 0, case.config.seq_len))
    for seen in (None, mask):
        longer = None if seen is None else torch.nn.functional.pad(seen, (0, case.config.seq_len), value=True)
        expected = decoder(full, mask=longer)[:, : case.time]
        progress, found = Progress(), []
        for start, end in itertools.pairwise([0, *ends]):
            piece = None if seen is None else seen[:, start:end]
            states, progress = read_on(decoder, x[:, start:end], progress, piece)
            found.append(states)
            assert progress.tail is None or progress.tail.shape[1] < case.config.seq_len
        assert_same(torch.cat(found, 1), expected, seen)
        assert_same(read_whole(decoder, x, seen), expected, seen)


def assert_same(found: Tensor, expected: Tensor, mask: Tensor | None) -> None:
    real = torch.ones(found.shape[:2], dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(found[real], expected[real], atol=1e-9, rtol=1e-9)


def embedded(case: Case) -> Tensor:
    return case.model().token_emb(case.tokens()).detach()


def test_rows_are_selected() -> None:
    case = Case(config(), 3, 9, 0, 0)
    decoder, x = case.model().decoder, embedded(case)
    mask = torch.arange(9) >= torch.tensor([[0], [3], [5]])
    _, progress = read_on(decoder, x, Progress(), mask)
    rows = torch.tensor([2, 0, 2])
    found, _ = read_on(decoder, x[rows], progress.select(rows))
    expected, _ = read_on(decoder, x, progress)
    torch.testing.assert_close(found, expected[rows], atol=1e-12, rtol=0)


def config() -> FeedbackConfig:
    return FeedbackConfig(num_tokens=11, dim=8, depth=2, mem_len=4, seq_len=4, heads=2, dim_head=4)


def test_gradients_flow_through_what_was_read() -> None:
    case = Case(config(), 2, 8, 0, 0)
    decoder, x = case.model().decoder, embedded(case).requires_grad_()
    gradients = []
    for pieces in ([8], [3, 5], [4, 4], [6, 2]):
        progress, states = Progress(), []
        for part in x.split(pieces, dim=1):
            read, progress = read_on(decoder, part, progress)
            states.append(read)
        gradients.append(torch.autograd.grad(torch.cat(states, 1).square().sum(), x)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-10, rtol=1e-10)
