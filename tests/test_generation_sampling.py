"""Each filter of logits by itself, and their composition."""

import pytest
import torch

from feedback_transformer_pytorch import FeedbackTransformer, InputError, generate
from feedback_transformer_pytorch.generation import Sampling
from feedback_transformer_pytorch.generation.sampling import keep_min_p, keep_top_k, keep_top_p, penalize_repetition

LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]]).log()


def kept(logits: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits]


def test_filters_keep_the_likeliest() -> None:
    assert kept(keep_top_k(LOGITS, 1)) == [{1}, {0}]
    assert kept(keep_top_k(LOGITS, 9)) == [{0, 1, 2, 3}] * 2
    assert kept(keep_top_p(LOGITS, 0.6)) == [{1, 3}, {0}]
    assert kept(keep_min_p(LOGITS, 0.6)) == [{1, 3}, {0}]
    assert kept(keep_min_p(LOGITS, 0.4)) == [{1, 2, 3}, {0}]
    assert kept(keep_min_p(LOGITS, 1.0)) == [{1}, {0}]


def test_filters_leave_what_they_keep_and_their_input_alone() -> None:
    before = LOGITS.clone()
    for filtered in (keep_top_k(LOGITS, 2), keep_top_p(LOGITS, 0.6), keep_min_p(LOGITS, 0.4)):
        finite = filtered.isfinite()
        assert torch.equal(filtered[finite], LOGITS[finite])
    assert torch.equal(before, LOGITS)


def test_a_penalty_makes_seen_tokens_less_likely_whatever_the_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert torch.equal(penalize_repetition(logits, seen, 2.0), torch.tensor([[1.0, -4.0, 2.0, -2.0]]))


def test_the_penalty_comes_before_temperature_and_greed() -> None:
    logits, seen = torch.tensor([[3.0, 2.0]]), torch.tensor([[True, False]])
    assert int(Sampling(temperature=0).draw(logits, seen=seen)) == 0
    assert int(Sampling(temperature=0, repetition_penalty=2.0).draw(logits, seen=seen)) == 1


def test_temperature_comes_before_min_p() -> None:
    logits = torch.tensor([[0.0, -1.0]]).expand(1000, -1)
    assert set(Sampling(min_p=0.5).draw(logits).tolist()) == {0}
    assert set(Sampling(temperature=4.0, min_p=0.5).draw(logits).tolist()) == {0, 1}


def test_a_penalty_counts_the_tokens_of_the_prompt_and_the_drawn_ones() -> None:
    """So large a penalty that every token comes once before any comes twice."""
    model = FeedbackTransformer(num_tokens=9, dim=8, depth=1, mem_len=4, heads=2, dim_head=4)
    with torch.no_grad():
        model.to_logits.bias.add_(100)
    prompts = [torch.tensor([3, 5]), torch.tensor([3])]
    drawn = torch.stack(list(generate(model, prompts, max_new_tokens=7, temperature=0, repetition_penalty=1e6)), 1)
    assert set(drawn[0].tolist()) == set(range(9)) - {3, 5}
    assert len({3, *drawn[1].tolist()}) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_p": 0.0}, "min_p is 0.0; it must be above 0 and at most 1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0 and finite"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**options)  # type: ignore[arg-type]
