"""Models whose weights are rounded: what is written is what calls of such a model compute."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from feedback_transformer_pytorch import (
    FeedbackTransformer,
    InputError,
    ParallelTransformer,
    TransformerXL,
    beam_search,
    generate,
    load_state,
    round_weights,
    save_state,
)
from feedback_transformer_pytorch.generation import Reader, Weights
from feedback_transformer_pytorch.recurrence import incremental
from feedback_transformer_pytorch.recurrence.layout.rounding import narrowest_type
from feedback_transformer_pytorch.recurrence.native import applicability, product
from feedback_transformer_pytorch.recurrence.native.library import library

FIELDS: dict[str, Any] = {"num_tokens": 50, "dim": 24, "depth": 2, "mem_len": 6, "heads": 2, "dim_head": 12}
ROUNDED: list[Weights] = ["bfloat16", "int8"]


@pytest.fixture(params=["kernel", "operations"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "kernel":
        if library() is None:
            pytest.skip("no C++ compiler")
        yield
        return
    for module in (applicability, product):
        monkeypatch.setattr(module, "library", lambda: None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "weights in .* are read as float32", UserWarning)
        yield


def model(**changes: Any) -> FeedbackTransformer:
    return FeedbackTransformer(**FIELDS | changes).eval()


def calls_of(of: Any, tokens: Tensor) -> Tensor:
    """The logits (B, n, V) that calls give; every token is followed by another one in its segment."""
    with torch.no_grad():
        return of(F.pad(tokens, (0, -tokens.shape[1] % of.config.seq_len)))[:, : tokens.shape[1]]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("weights", ROUNDED)
@pytest.mark.parametrize("changes", [{}, {"seq_len": 4, "kv_heads": 1}, {"kv": "per_layer", "norm": "post"}], ids=str)
@pytest.mark.filterwarnings("ignore:weights in .* are read as float32:UserWarning")
def test_a_reader_computes_what_calls_do(
    changes: dict[str, Any], weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls by the definition, in float64, with the same weights."""
    monkeypatch.setattr(incremental, "TOKENS_AT_ONCE", 8)
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)
    found = round_weights(model(**changes), weights)
    tokens = torch.randint(0, 50, (3, 41))
    reader = Reader(found)
    read = torch.stack([reader.read(token) for token in tokens.split(1, dim=1)], 1)
    found.implementation = "stepwise"
    torch.testing.assert_close(read, calls_of(found.double(), tokens).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("weights", ROUNDED)
def test_a_state_continues_bit_for_bit_with_the_same_weights_alone(weights: Weights, tmp_path: Path) -> None:
    given = model(seq_len=4)
    found, prompt = round_weights(given, weights), torch.randint(0, 50, (2, 7))
    expected = torch.stack(list(generate(found, prompt, max_new_tokens=30, generator=seeded())))
    first = generate(found, prompt, max_new_tokens=11, generator=seeded())
    tokens = list(first)
    save_state(tmp_path / "state", first.state, found)
    again = round_weights(given, weights)
    tokens += list(generate(again, max_new_tokens=19, state=load_state(tmp_path / "state", again)))
    assert torch.equal(torch.stack(tokens), expected)
    others = [given, round_weights(given, "bfloat16" if weights == "int8" else "int8")]
    for other in others:
        with pytest.raises(InputError, match="belongs to another model: .* its weights rounded to the same type"):
            load_state(tmp_path / "state", other)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.usefixtures("way")
def test_beams_search_with_rounded_weights() -> None:
    found = round_weights(model(), "int8")
    [[best, *_]] = beam_search(found, torch.tensor([[1, 2, 3]]), max_new_tokens=5, beams=3)
    text = torch.cat([torch.tensor([1, 2, 3]), best.tokens])[None]
    likelihoods = calls_of(found, text)[0].log_softmax(-1)
    expected = sum(float(likelihoods[place - 1, text[0, place]]) for place in range(3, 8))
    assert best.log_probability == pytest.approx(expected, abs=1e-4)


def test_a_copy_is_rounded_and_the_model_is_not() -> None:
    given = model().double()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    in_float32 = round_weights(given, "float32")
    assert all(torch.equal(value, before[name].float()) for name, value in in_float32.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = round_weights(given, "int8")
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert not found.training
    assert narrowest_type([found.to_logits.weight, found.layers[1].attention.to_q.weight]) == torch.int8
    assert torch.equal(found.token_emb.weight, in_float32.token_emb.weight)


def test_no_other_weights_are_known() -> None:
    with pytest.raises(InputError, match=r"weights is 'int4'; it must be one of \('float32', 'bfloat16', 'int8'\)"):
        round_weights(model(), "int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [ParallelTransformer, TransformerXL])
def test_baselines_are_rounded_and_not_faster(cls: Any) -> None:
    given = cls(**FIELDS).eval()
    with pytest.warns(UserWarning, match=rf"int8 are read as float32.*: the kernel does not walk a {cls.__name__}"):
        found = round_weights(given, "int8")
    tokens, reader = torch.randint(0, 50, (2, 9)), Reader(found)
    assert narrowest_type([found.layers[0].to_q.weight]) == torch.int8
    torch.testing.assert_close(reader.read(tokens), calls_of(found, tokens)[:, -1])


def test_where_there_is_no_kernel_one_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applicability, "library", lambda: None)
    with pytest.warns(UserWarning, match="which is not faster: there is no compiled kernel") as caught:
        found = round_weights(model(), "int8")
    assert len(caught) == 1
    list(generate(found, torch.tensor([[1]]), max_new_tokens=5))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kv": "per_layer"}, "the kernel does not know kv='per_layer'"),
        ({"implementation": "stepwise"}, "implementation is 'stepwise'"),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_walk_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.warns(UserWarning, match=reason):
        round_weights(model(**changes), "int8")


# What rounding may cost in bits per byte. The documentation says so; int8 costs less than 0.001 where it was measured.
LOSS = {"bfloat16": 0.001, "int8": 0.01}


@pytest.mark.filterwarnings("ignore:weights in .* are read as float32:UserWarning")
def test_rounding_costs_next_to_nothing() -> None:
    """A small model, trained on text of Python's documentation until it knows some of it, on other text of it."""
    text = "".join(topics.topics[name] for name in sorted(topics.topics)).encode()
    learnt, held_out = torch.tensor(list(text[:104_000])), torch.tensor(list(text[-8_192:])).view(16, 512)
    trained = FeedbackTransformer(
        num_tokens=256, dim=32, depth=2, mem_len=16, heads=2, dim_head=16, position="relative", norm_memory=True
    )
    optimizer = torch.optim.Adam(trained.parameters(), lr=5e-3)
    for block in learnt[: 100 * 32 * 32].view(100, 32, 32):
        optimizer.zero_grad()
        _bits(trained, block).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 0.1)
        optimizer.step()
    trained.eval()
    before = float(_bits(trained, held_out).detach())
    assert before < 4  # of 8 without having learnt anything
    for weights in ROUNDED:
        after = float(_bits(round_weights(trained, weights), held_out).detach())
        assert abs(after - before) <= LOSS[weights]


def _bits(of: FeedbackTransformer, block: Tensor) -> Tensor:
    """Bits per byte of a block (B, T), each row by itself."""
    return F.cross_entropy(of(block[:, :-1]).flatten(0, 1), block[:, 1:].flatten()) / math.log(2)
