from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cases import Case, cases, definition
from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer, InputError, Memory
from feedback_transformer_pytorch.generation import Reader
from feedback_transformer_pytorch.memory import as_memory
from feedback_transformer_pytorch.recurrence import Incremental, WalkRequest, incremental
from feedback_transformer_pytorch.recurrence.native import applicability
from feedback_transformer_pytorch.recurrence.native.library import library

FIELDS = {"num_tokens": 11, "dim": 8, "depth": 2, "mem_len": 4, "seq_len": 3, "heads": 2, "dim_head": 4}
CASE = Case(FeedbackConfig(**FIELDS), 2, 8, 0, 0)


@pytest.fixture(params=["kernel", "operations"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "operations":
        monkeypatch.setattr(applicability, "library", lambda: None)
    elif library() is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)


@pytest.mark.usefixtures("way")
@given(cases(), st.integers(1, 9))
def test_segment_by_segment_it_is_the_definition(case: Case, tokens_at_once: int) -> None:
    """States of whole segments and of their beginnings, and the memory that is left."""
    model, seq_len = case.model(), case.config.seq_len

    def whole() -> dict[str, Tensor]:
        states, memory = model.decoder(model.token_emb(case.tokens()), case.memory(), return_memory=True)
        found: dict[str, Tensor] = {}
        for index, segment in enumerate(states.split(seq_len, 1)):
            found |= {f"{index}, {length} tokens": segment[:, :length] for length in lengths(segment)}
        return found if case.time % seq_len else found | {"keys": memory.keys, "values": memory.values}

    found: dict[str, Tensor] = {}
    with torch.no_grad(), mock.patch.object(incremental, "TOKENS_AT_ONCE", tokens_at_once):
        x = model.token_emb(case.tokens())
        walk = start(model, x, case.memory())
        for index, segment in enumerate(x.split(seq_len, 1)):
            for length in lengths(segment):
                advance = walk.step if length == seq_len else walk.peek
                found[f"{index}, {length} tokens"] = model.decoder.norm(advance(segment[:, :length]))
        if case.time % seq_len == 0:
            found |= {"keys": walk.memory.keys, "values": walk.memory.values}
    definition(model, whole).assert_agrees(found)


def start(model: FeedbackTransformer, x: Tensor, memory: Memory | None) -> Incremental:
    """A walk behind a memory."""
    past = as_memory(memory, x, model.config)
    assert isinstance(past, Memory)
    return Incremental(model.decoder.stack, WalkRequest(x, past.keys, past.values), past)


def lengths(segment: Tensor) -> list[int]:
    """Of the beginnings whose states are those of the whole segment: a single token does not attend to itself."""
    return [*range(2, segment.shape[1]), segment.shape[1]]


def reads_like_calls(reader: Reader, **memory: Memory | None) -> None:
    """Compares a reader with calls of its model over the whole text."""
    tokens = CASE.tokens()
    found = {f"{read}": reader.read(tokens[:, read : read + 1]) for read in range(tokens.shape[1])}

    def calls() -> dict[str, Tensor]:
        texts = [torch.nn.functional.pad(tokens[:, : read + 1], (0, -(read + 1) % 3)) for read in range(len(found))]
        return {f"{read}": reader.model(text, **memory)[:, read] for read, text in enumerate(texts)}

    definition(reader.model, calls).assert_agrees(found)


@pytest.mark.parametrize("name", ["", "decoder", "decoder.stack.layers.0"])
@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")
def test_hooks_are_called(name: str) -> None:
    model, calls = CASE.model(), []
    model.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    reader = Reader(model)
    for read in range(CASE.time):
        reader.read(CASE.tokens()[:, read : read + 1])
    assert len(calls) >= CASE.time


def test_rows_that_differ_in_what_they_see_are_read_by_calls() -> None:
    memory = Memory(torch.randn(2, 3, 8).double(), torch.randn(2, 3, 8).double(), torch.tensor([1, 3]))
    reads_like_calls(Reader(CASE.model(), memory), memory=memory)


def test_dropout_is_drawn_as_in_calls() -> None:
    model = Case(FeedbackConfig(**FIELDS, ff_dropout=0.5), 2, 8, 0, 0).model()
    tokens = CASE.tokens()[:, :6]
    torch.manual_seed(0)
    found = Reader(model).read(tokens)
    torch.manual_seed(0)
    assert torch.equal(found, model(tokens)[:, -1])
    assert not torch.equal(Reader(model).read(tokens), found)
    reads_like_calls(Reader(model.eval()))


@pytest.mark.usefixtures("way")
def test_under_autocast_it_is_as_near_to_float64_as_a_call() -> None:
    model, tokens = CASE.model(), CASE.tokens()[:, :6]
    exact = model(tokens)[:, -1]
    model.float()
    with torch.autocast("cpu"):
        found, expected = Reader(model).read(tokens), model(tokens)[:, -1]
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() <= 3 * (expected - exact).norm()


@pytest.mark.parametrize("shape", [(1, 3, 8), (2, 4, 8), (2, 0, 8), (2, 3, 9)])
def test_what_is_not_like_the_start_is_refused(shape: tuple[int, ...]) -> None:
    model = CASE.model()
    like = torch.zeros(2, 5, 8, dtype=torch.float64)
    walk = start(model, like, None)
    for wrong in (torch.zeros(shape).double(), torch.zeros(2, 3, 8)):
        for way, shortest in ((walk.step, 3), (walk.peek, 1)):
            with pytest.raises(InputError, match=rf"must be torch.float64 \(batch=2, {shortest} to seq_len=3, dim=8\)"):
                way(wrong)
    with pytest.raises(InputError, match="3 to seq_len=3"):
        walk.step(like[:, :2])
    walk.step(like[:, :3])


def test_a_reader_goes_on_after_a_wrong_token() -> None:
    reader, tokens = Reader(CASE.model()), CASE.tokens()
    reader.read(tokens[:, :4])
    with pytest.raises(InputError, match="token 11"):
        reader.read(torch.tensor([[11], [0]]))
    expected = definition(reader.model, lambda: {"logits": reader.model(tokens[:, :6])[:, -1]})
    expected.assert_agrees({"logits": reader.read(tokens[:, 4:6])})
