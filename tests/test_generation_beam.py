"""Beam search against a search that computes every text from scratch, and against all texts there are."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feedback_transformer_pytorch import FeedbackTransformer, InputError, TransformerXL, beam_search, generate
from feedback_transformer_pytorch.generation import Hypothesis, Model
from random_variants import NUM_TOKENS, Variant, variants
from test_generation_recomputed import FIELDS, context_of, logits_of_whole


def next_log_probabilities(model: Model, text: list[int], **context: Tensor) -> list[float]:
    found: list[float] = logits_of_whole(model, torch.tensor([text]), **context)[0, -1].log_softmax(-1).tolist()
    return found


def from_scratch(
    model: Model, prompt: list[int], count: int, beams: int, penalty: float, stop: list[list[int]], **context: Tensor
) -> list[tuple[float, list[int], bool]]:
    """The same search without any state and without ending early: (score, tokens, ended), the best first."""
    live, found = [(0.0, list[int]())], []
    for length in range(1, count + 1):
        candidates = sorted(
            (
                (total + step, [*text, token])
                for total, text in live
                for token, step in enumerate(next_log_probabilities(model, [*prompt, *text], **context))
            ),
            key=lambda pair: -pair[0],
        )
        ended = [any(text[-len(end) :] == end for end in stop) for _, text in candidates]
        found += [
            (total / length**penalty, text, True)
            for (total, text), end in zip(candidates[:beams], ended, strict=False)
            if end
        ]
        live = [pair for pair, end in zip(candidates, ended, strict=True) if not end][:beams]
    found += [(total / count**penalty, text, False) for total, text in live]
    return sorted(found, key=lambda entry: -entry[0])


def assert_found(found: list[Hypothesis], expected: list[tuple[float, list[int], bool]]) -> None:
    assert [hypothesis.tokens.tolist() for hypothesis in found] == [text for _, text, _ in expected]
    assert [hypothesis.ended for hypothesis in found] == [ended for _, _, ended in expected]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _, _ in expected], rel=1e-9)


@settings(max_examples=15)
@given(variants(), st.integers(1, 4), st.sampled_from([-0.5, 0.0, 0.7, 1.0, 2.0]), st.data())
def test_it_is_the_search_from_scratch(variant: Variant, beams: int, penalty: float, data: st.DataObject) -> None:
    model, context = variant.model().eval(), context_of(variant)
    prompt = variant.tokens()
    num_return = data.draw(st.integers(1, beams))
    tokens = st.integers(0, NUM_TOKENS - 1)
    stop = data.draw(st.lists(st.lists(tokens, min_size=1, max_size=2), max_size=3))
    found = beam_search(
        model, prompt, max_new_tokens=7, beams=beams, num_return=num_return, length_penalty=penalty, stop=stop,
        **context,
    )  # fmt: skip
    for row, hypotheses in enumerate(found):
        own = {name: value[row : row + 1] for name, value in context.items()}
        expected = from_scratch(model, prompt[row].tolist(), 7, beams, penalty, stop, **own)
        assert_found(hypotheses, expected[:num_return])


def test_baselines_search_likewise() -> None:
    model = TransformerXL(**FIELDS).double().eval()
    found = beam_search(model, torch.tensor([[1, 2, 3]]), max_new_tokens=12, beams=3, num_return=3, end_of_text=4)
    assert_found(found[0], from_scratch(model, [1, 2, 3], 12, 3, 1.0, [[4]])[:3])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
def test_likely_ends_leave_the_beams_full(penalty: float) -> None:
    model = FeedbackTransformer(**FIELDS).double().eval()
    with torch.no_grad():
        model.to_logits.bias[:3] += 2.0
    stop = [[0], [1], [2]]
    found = beam_search(
        model, torch.tensor([[5]]), max_new_tokens=6, beams=3, num_return=3, length_penalty=penalty, stop=stop
    )
    assert_found(found[0], from_scratch(model, [5], 6, 3, penalty, stop)[:3])


def test_many_beams_find_the_best_of_all_texts() -> None:
    model = FeedbackTransformer(**FIELDS | {"num_tokens": 3, "seq_len": 1}).double().eval()
    found = beam_search(model, torch.tensor([[1]]), max_new_tokens=4, beams=81, num_return=81)[0]
    scores = {}
    for text in itertools.product(range(3), repeat=4):
        steps = [next_log_probabilities(model, [1, *text[:n]])[text[n]] for n in range(4)]
        scores[text] = sum(steps) / 4
    assert {tuple(hypothesis.tokens.tolist()) for hypothesis in found} == set(scores)
    best = sorted(scores.values(), reverse=True)
    assert [hypothesis.score for hypothesis in found] == pytest.approx(best, rel=1e-9)


def test_prompts_of_different_lengths_are_searched_alone() -> None:
    model = FeedbackTransformer(**FIELDS, seq_len=3).double().eval()
    prompts = [torch.tensor([1, 2, 3, 4, 5]), torch.tensor([6])]
    together = beam_search(model, prompts, max_new_tokens=5, beams=2)
    for prompt, found in zip(prompts, together, strict=True):
        assert_found(found, from_scratch(model, prompt.tolist(), 5, 2, 1.0, [])[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams is 0; it must be a whole number of at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number of at least 1"),
        ({"beams": 1.5}, "beams is 1.5; it must be a whole number of at least 1"),
        ({"num_return": 4}, "num_return is 4; it must be from 1 to beams=3"),
        ({"num_return": 1.5}, "num_return is 1.5; it must be a whole number of at least 1"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; it must be finite"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        beam_search(FeedbackTransformer(**FIELDS), torch.tensor([[1]]), **{"max_new_tokens": 2, "beams": 3, **options})


def test_a_memory_or_a_context_of_other_rows_is_refused() -> None:
    torch.manual_seed(0)
    model = FeedbackTransformer(num_tokens=7, dim=8, depth=1, mem_len=4, seq_len=2, heads=2, dim_head=4, context_dim=3)
    x, context = torch.randint(0, 7, (2, 4)), torch.randn(2, 3, 3)
    _, memory = model(x, return_memory=True, context=context)
    for arguments, message in (
        ({"memory": memory, "context": context[:1]}, "memory has 2 rows for 1 texts"),
        ({"context": context}, "context has 2 rows for 1 texts"),
        ({"memory": tuple(memory), "context": context[:1]}, "memory is a tuple; give what a call"),
    ):
        with pytest.raises(InputError, match=message):
            beam_search(model, x[:1], max_new_tokens=2, beams=2, **arguments)
    prompts, more = [x[0, :3], x[1, :4]], context.repeat(2, 1, 1)
    with pytest.raises(InputError, match="context has 4 rows for 2 texts"):
        next(generate(model, prompts, max_new_tokens=2, context=more))
    going_on = generate(model, x, max_new_tokens=2, context=context)
    next(going_on)
    with pytest.raises(InputError, match="context has 4 rows for 2 texts"):
        next(generate(model, max_new_tokens=2, context=more, state=going_on.state))
