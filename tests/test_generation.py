import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cases import Case, cases, definition
from feedback_transformer_pytorch import FeedbackConfig, InputError, generate
from feedback_transformer_pytorch.config import Carry
from feedback_transformer_pytorch.generation import Reader, Sampling

CASE = Case(FeedbackConfig(num_tokens=11, dim=8, depth=2, mem_len=4, seq_len=3, heads=2, dim_head=4), 2, 8, 0, 0)


@given(cases(), st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_reading_in_pieces_gives_the_logits_of_the_whole_text(case: Case, pieces: list[int]) -> None:
    """At every point the logits are those of the whole text with one more token in the segment, as in training."""
    model, x = case.model(), case.tokens()
    seq_len = case.config.seq_len
    beyond = torch.nn.functional.pad(x, (0, -case.time % seq_len))
    ends = [end for end in itertools.accumulate(pieces) if end <= case.time]
    reader = Reader(model, case.memory())
    found = {f"{end}": reader.read(x[:, start:end]) for start, end in itertools.pairwise([0, *ends])}

    def whole() -> dict[str, Tensor]:
        logits = model(beyond, case.memory())
        return {f"{end}": logits[:, end - 1] for end in ends}

    definition(model, whole).assert_agrees(found)


def test_greedy_is_the_argmax_of_the_whole_text() -> None:
    model, prompt = CASE.model(), CASE.tokens()
    text = torch.cat([prompt, torch.stack(list(generate(model, prompt, max_new_tokens=9, temperature=0)), 1)], 1)
    for n in range(8, 17):
        whole = torch.nn.functional.pad(text[:, :n], (0, -n % 3))
        assert torch.equal(model(whole)[:, n - 1].argmax(-1), text[:, n])


@pytest.mark.parametrize("carry", ["keys", "state"])
def test_generation_may_change_between_inference_mode_and_none(carry: Carry) -> None:
    model = dataclasses.replace(CASE, config=dataclasses.replace(CASE.config, carry=carry)).model()
    expected = list(generate(model, CASE.tokens(), max_new_tokens=24, temperature=0))
    going, found = generate(model, CASE.tokens(), max_new_tokens=24, temperature=0), []
    for number in range(24):
        with torch.inference_mode(number // 4 % 2 == 0):
            found.append(next(going))
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_the_same_seed_writes_the_same() -> None:
    model, prompt = CASE.model(), CASE.tokens()
    runs = [
        torch.stack(list(generate(model, prompt, max_new_tokens=20, generator=torch.Generator().manual_seed(seed))))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_state_does_not_grow() -> None:
    reader = Reader(CASE.model())
    for _ in range(10):
        reader.read(CASE.tokens())
        assert reader.memory is not None
        assert reader.memory.keys.shape == (2, 4, 8)
        assert reader.pending is None or reader.pending.shape[1] < 3


def test_top_k_and_top_p_keep_only_the_likeliest() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().expand(2000, -1)
    assert set(Sampling(top_k=2).draw(logits).tolist()) == {1, 3}
    assert set(Sampling(top_p=0.6).draw(logits).tolist()) == {1, 3}
    assert set(Sampling(top_p=0.39).draw(logits).tolist()) == {1}
    assert set(Sampling().draw(logits).tolist()) == {0, 1, 2, 3}
    for temperature in (0, 1e-50, 1e-39, 1e-8):
        assert set(Sampling(temperature=temperature).draw(1e6 * logits).tolist()) == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number of at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; it must be a whole number of at least 0"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(CASE.model(), CASE.tokens(), **{"max_new_tokens": 3, **options})  # type: ignore[arg-type]
