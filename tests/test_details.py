"""Attention and states of all layers: the same by the definition and by the fast ways, and what they say is so."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from cases import definition
from feedback_transformer_pytorch import (
    Details,
    FeedbackConfig,
    FeedbackDecoder,
    FeedbackTransformer,
    InputError,
    ParallelTransformer,
    TransformerXL,
)
from feedback_transformer_pytorch.recurrence.native import applicability
from random_variants import NUM_TOKENS, Variant, variants

BASE = FeedbackConfig(num_tokens=NUM_TOKENS, dim=6, depth=2, mem_len=4, seq_len=1, heads=4, dim_head=3, kv_heads=2)
SPAN: dict[str, Any] = {"adaptive_span": True, "span_ramp": 2, "span_trim": 1, "position": "learned"}


@pytest.fixture(autouse=True)
def small_walks_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is not written is NaN."""
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def model_of(changes: dict[str, Any] | None = None, **options: Any) -> FeedbackTransformer:
    return Variant(dataclasses.replace(BASE, **(changes or {})), 2, 1, 0, False, False).model(**options).eval()


def tokens(batch: int, time: int) -> Tensor:
    return torch.randint(0, NUM_TOKENS, (batch, time))


def look(model: FeedbackTransformer, x: Tensor, memory: Any = None, **flags: Any) -> Any:
    """Details of a call, all of them there."""
    with torch.no_grad():
        details = model(x, memory, True, return_attention=True, return_states=True, **flags)
    assert isinstance(details, Details)
    return details


@settings(max_examples=150)
@given(variants())
def test_all_ways_to_walk_give_the_same(case: Variant) -> None:
    model, (context, mask) = case.model(implementation="fused"), case.context()
    x, flags = case.tokens(), case.flags()

    def both_calls() -> dict[str, Tensor]:
        torch.manual_seed(7)  # dropout
        asked = {"context": context, "context_mask": mask, "return_attention": True, "return_states": True}
        first = model(x[:, : case.time // 2 + 1], None, True, **asked)
        second = model(x, first.memory, True, **asked, **flags)
        found = {"first": first.attention, "second": second.attention, "output": second.output.detach()}
        return found | {"first states": first.states, "second states": second.states}

    expected = definition(model, both_calls)
    expected.assert_agrees(both_calls())
    with torch.no_grad():
        expected.assert_agrees(both_calls())


@pytest.mark.parametrize("implementation", ["stepwise", "fused"])
@pytest.mark.parametrize("seq_len", [1, 3])
def test_shapes_and_what_a_token_sees(seq_len: int, implementation: Any) -> None:
    model = model_of({"seq_len": seq_len}, implementation=implementation)
    _, memory = model(tokens(2, 3), return_memory=True)
    details = look(model, tokens(2, 8), memory)
    assert details.output.shape == (2, 8, NUM_TOKENS)
    assert details.attention.shape == (2, 2, 4, 8, 3 + 8)
    assert details.states.shape == (3, 2, 8, 6)
    query, key = torch.arange(8)[:, None], torch.arange(-3, 8)
    start = query // seq_len * seq_len
    in_segment = (key >= start) & (key <= query) & ((start + 1 < 8) & (seq_len > 1))
    sees = ((key < start) & (key >= start - 4)) | in_segment
    assert ((details.attention > 0) == sees).all()
    torch.testing.assert_close(details.attention.sum(-1), torch.ones(2, 2, 4, 8, dtype=torch.float64))


@pytest.mark.parametrize("implementation", ["stepwise", "fused"])
def test_attention_times_values_is_what_a_layer_adds(implementation: Any) -> None:
    model = model_of({"depth": 1, "mem_len": 20}, implementation=implementation)
    _, memory = model(tokens(2, 3), return_memory=True)
    x = tokens(2, 9)
    details, layer = look(model, x, memory), model.decoder.stack.layers[0]
    values = details.memory.values.unflatten(-1, (2, 1, 3)).expand(-1, -1, -1, 2, -1).flatten(2, 3)
    attended = torch.einsum("bhtn,bnhe->bthe", details.attention[:, 0], values).flatten(2)
    middle = model.token_emb(x) + layer.attention.to_out(attended)
    top = middle + layer.feedforward(layer.feedforward.norm(middle))
    torch.testing.assert_close(details.states[0], model.token_emb(x))
    torch.testing.assert_close(details.states[1], top)
    torch.testing.assert_close(details.output, model.to_logits(model.decoder.norm(top)))


@pytest.mark.parametrize("changes", [{}, {"seq_len": 3}, {"memory_start": "zeros"}, SPAN], ids=str)
@pytest.mark.parametrize("implementation", ["stepwise", "fused"])
def test_padding_and_documents_are_as_if_they_were_apart(changes: dict[str, Any], implementation: Any) -> None:
    model = model_of(changes, implementation=implementation)
    _, memory = model(tokens(1, 4), return_memory=True)
    first, second = tokens(1, 5), tokens(1, 7)
    x = torch.cat([tokens(1, 2), first, tokens(1, 1), second], dim=1)
    mask, reset = torch.ones(1, 15, dtype=torch.bool), torch.zeros(1, 15, dtype=torch.bool)
    mask[0, [0, 1, 7]] = False
    reset[0, 8] = True
    found, before, after = (
        look(model, x, memory, mask=mask, reset=reset),
        look(model, first, memory),
        look(model, second),
    )
    attention, states = torch.zeros(1, 2, 4, 15, 4 + 15).double(), torch.zeros(3, 1, 15, 6).double()
    attention[..., 2:7, :4], attention[..., 2:7, 6:11] = before.attention[..., :4], before.attention[..., 4:]
    attention[..., 8:, 12:] = after.attention[..., after.attention.shape[-1] - 7 :]  # zero states have no place
    states[:, :, 2:7], states[:, :, 8:] = before.states, after.states
    torch.testing.assert_close(found.attention, attention)
    torch.testing.assert_close(found.states, states)


@pytest.mark.parametrize("changes", [{}, {"seq_len": 3}, SPAN | {"carry": "state"}], ids=str)
def test_two_calls_are_one(changes: dict[str, Any]) -> None:
    model, x = model_of(changes), tokens(2, 12)
    whole, first = look(model, x), look(model, x[:, :6])
    second = look(model, x[:, 6:], first.memory)
    torch.testing.assert_close(first.attention, whole.attention[..., :6, :6])
    torch.testing.assert_close(second.attention, whole.attention[..., 6:, 2:])
    torch.testing.assert_close(torch.cat([first.states, second.states], dim=2), whole.states)


@pytest.mark.parametrize("recompute", [False, True])
def test_details_change_neither_the_output_nor_gradients(recompute: bool) -> None:
    model, x = model_of({"seq_len": 2}), tokens(2, 9)
    model.recompute = recompute
    model(x).sin().sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    details = model(x, return_attention=True, return_states=True)
    assert details.memory is None
    assert not details.attention.requires_grad
    assert not details.states.requires_grad
    details.states.zero_()  # it is the caller's
    details.output.sin().sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], expected)


@pytest.mark.parametrize("implementation", ["stepwise", "fused"])
@pytest.mark.parametrize("gradients", [False, True])
def test_each_can_be_asked_for_alone(implementation: Any, gradients: bool) -> None:
    model, x = model_of({"seq_len": 2, "depth": 3}, implementation=implementation), tokens(2, 9)
    both = look(model, x)
    with torch.set_grad_enabled(gradients):
        attention, states = model(x, return_attention=True), model(x, return_states=True)
    torch.testing.assert_close(attention.attention, both.attention)
    torch.testing.assert_close(states.states, both.states)
    assert attention.states is states.attention is attention.memory is None


def test_a_decoder_gives_states_before_its_last_norm() -> None:
    decoder = FeedbackDecoder(**dataclasses.replace(BASE, num_tokens=None).to_dict())
    details = decoder(torch.randn(2, 5, 6), return_states=True)
    torch.testing.assert_close(details.output, decoder.norm(details.states[-1]))


def test_a_trace_breaks_for_details() -> None:
    model, x = model_of(), tokens(2, 9)
    with torch.no_grad():
        found = torch.compile(model, backend="eager")(x, return_attention=True)
    torch.testing.assert_close(found.attention, look(model, x).attention)


@pytest.mark.parametrize("cls", [ParallelTransformer, TransformerXL])
@pytest.mark.parametrize("name", ["return_attention", "return_states"])
def test_baselines_have_no_details(cls: type[ParallelTransformer], name: str) -> None:
    model = cls(num_tokens=NUM_TOKENS, dim=8, depth=1, mem_len=4)
    with pytest.raises(InputError, match=rf"{name} is True, but a {cls.__name__} does not keep"):
        model(tokens(1, 4), **{name: True})
