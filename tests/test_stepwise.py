"""What must hold for the definition, over all shapes, in float64."""

import dataclasses
import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cases import POSITIONS, Case, cases, definition, named
from feedback_transformer_pytorch import FeedbackConfig, FeedbackDecoder, Memory


@given(cases(), st.integers(0, 100))
def test_causality_bit_for_bit(case: Case, which: int) -> None:
    model, x, t = case.model(), case.tokens(), which % case.time
    changed = x.clone()
    changed[:, t] = (x[:, t] + 1) % case.config.num_tokens
    before, after = model(x, case.memory()), model(changed, case.memory())
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t], after[:, t])


@given(cases(), st.integers(1, 4))
def test_a_split_at_a_segment_boundary_changes_nothing(case: Case, segments: int) -> None:
    model, x = case.model(), case.tokens()
    memory, parts = case.memory(), []
    for part in x.split(segments * case.config.seq_len, dim=1):
        out, memory = model(part, memory, return_memory=True)
        parts.append(out)
    whole = definition(model, lambda: named(*model(x, case.memory(), return_memory=True)))
    whole.assert_agrees(named(torch.cat(parts, dim=1), memory))
    assert memory.lengths is None


@given(cases(), st.integers(0, 5), st.integers(0, 5))
def test_padding_left_and_right_is_as_if_it_were_not_there(case: Case, left: int, right: int) -> None:
    model, x = case.model(), case.tokens()
    padded = torch.nn.functional.pad(x, (left, right), value=1)
    mask = torch.nn.functional.pad(torch.ones_like(x, dtype=torch.bool), (left, right))
    out, memory = model(padded, case.memory(), return_memory=True, mask=mask)
    plain = definition(model, lambda: named(*model(x, case.memory(), return_memory=True)))
    plain.assert_agrees(named(out[:, left : left + case.time], memory))
    assert memory.lengths is None


@given(cases(), st.floats(0, 1))
def test_rows_of_unlike_length_are_as_if_alone(case: Case, probability: float) -> None:
    """Padding anywhere, also carried over to a second call through the memory's lengths."""
    model, x, mask = case.model(), case.tokens(), case.flags(probability)
    out, memory = model(x, case.memory(), return_memory=True, mask=mask)
    again = model(x, memory)

    def alone(row: int) -> dict[str, Tensor]:
        own, text, found = memory_of(case, row), x[row : row + 1, mask[row]], {}
        if text.shape[1]:
            found["out"], own = model(text, own, return_memory=True)
        return found | {"again": model(x[row : row + 1], own)}

    for row in range(case.batch):
        found = {"out": out[row : row + 1, mask[row]]} if mask[row].any() else {}
        definition(model, partial(alone, row)).assert_agrees(found | {"again": again[row : row + 1]})


def memory_of(case: Case, row: int) -> Memory | None:
    memory = case.memory()
    return None if memory is None else memory.select(torch.tensor([row]))


@given(cases(), st.floats(0, 1), st.floats(0.5, 1))
def test_reset_is_a_separate_call(case: Case, probability: float, real: float) -> None:
    model, x, reset, mask = case.model(), case.tokens(), case.flags(probability), case.flags(real, salt=4)
    out, memory = model(x, case.memory(), return_memory=True, mask=mask, reset=reset)

    def alone(row: int) -> dict[str, Tensor]:
        last, found = memory_of(case, row), {}
        for start, document in documents(row):
            if start < case.time and reset[row, start]:
                last = None
            if len(document):
                found[f"from {start}"], last = model(x[row : row + 1, document], last, return_memory=True)
        return found if last is None else found | {"keys": last.keys, "values": last.values}

    def documents(row: int) -> list[tuple[int, Tensor]]:
        """Where each starts, and the places of its real tokens."""
        starts = [0, *reset[row].nonzero()[:, 0].tolist(), case.time]
        return [(start, mask[row, start:end].nonzero()[:, 0] + start) for start, end in itertools.pairwise(starts)]

    for row in range(case.batch):
        expected = definition(model, partial(alone, row))
        seen = memory.keys.shape[1] if memory.lengths is None else int(memory.lengths[row])
        assert seen == (expected.values["keys"].shape[1] if "keys" in expected.values else 0)
        found = {f"from {start}": out[row : row + 1, places] for start, places in documents(row) if len(places)}
        if seen:
            found |= {"keys": memory.keys[row : row + 1, -seen:], "values": memory.values[row : row + 1, -seen:]}
        expected.assert_agrees(found)


@given(cases())
def test_a_row_alone_is_the_row_in_a_batch(case: Case) -> None:
    model, x = case.model(), case.tokens()
    batch = model(x, case.memory())

    def alone(row: int) -> dict[str, Tensor]:
        return {"out": model(x[row : row + 1], memory_of(case, row))}

    for row in range(case.batch):
        definition(model, partial(alone, row)).assert_agrees({"out": batch[row : row + 1]})


@given(cases())
def test_a_memory_longer_than_the_text_is_unlimited(case: Case) -> None:
    enough = dataclasses.replace(case, config=dataclasses.replace(case.config, mem_len=case.time + 5), memory_slots=0)
    more = dataclasses.replace(enough, config=dataclasses.replace(enough.config, mem_len=10 * case.time + 50))
    model = enough.model()
    expected = definition(model, lambda: {"out": model(case.tokens())})
    expected.assert_agrees({"out": more.model()(case.tokens())})


@given(cases(), st.sampled_from(["nothing real", "all reset", "no memory"]))
def test_nothing_is_nan_when_a_row_sees_nothing(case: Case, how: str) -> None:
    model, x = case.model(), case.tokens()
    ones = torch.ones_like(x, dtype=torch.bool)
    mask, reset = {"nothing real": (~ones, None), "all reset": (None, ones), "no memory": (None, None)}[how]
    out, memory = model(x, return_memory=True, mask=mask, reset=reset)
    out.sum().backward()
    assert out.isfinite().all()
    assert memory.keys.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@given(cases(seq_len=1))
def test_every_layer_sees_the_top_of_the_token_before(case: Case) -> None:
    """With one token a segment the first layer of token t depends on the last layer's output for token t-1."""
    config = dataclasses.replace(case.config, stored="top", memory_norm="none", mem_len=1)
    case = dataclasses.replace(case, config=config, memory_slots=0, time=2)
    model, x = case.model(), case.tokens()
    before = model(x)
    with torch.no_grad():
        model.decoder.stack.layers[-1].feedforward.to_out.bias.add_(1.0)
        shifted = model(x)
        tops = []
        handle = model.decoder.norm.register_forward_hook(lambda _, args, __: tops.append(args[0]))
        model(x)
        handle.remove()
    assert not torch.allclose(before[:, 1], shifted[:, 1])
    assert tops[0].shape == (case.batch, 2, config.dim)


def test_the_first_token_skips_attention_with_its_bias() -> None:
    """With nothing to attend to, the output bias of the attention must not be added either (as in 0.0.11)."""
    case = Case(FeedbackConfig(num_tokens=11, dim=4, depth=1, mem_len=3, seq_len=1, heads=1), 2, 1, 0, 0)
    model = case.model()
    before = model(case.tokens())
    with torch.no_grad():
        model.decoder.stack.layers[0].attention.to_out.bias.add_(5.0)
    assert torch.equal(model(case.tokens()), before)


def test_dropout_is_drawn_in_training_only() -> None:
    config = FeedbackConfig(num_tokens=11, dim=8, depth=2, mem_len=3, attn_dropout=0.5, ff_dropout=0.5)
    case = Case(config, 2, 6, 2, 0)
    model, x, memory = case.model(), case.tokens(), case.memory()
    assert not torch.equal(model(x, memory), model(x, memory))
    model.eval()
    assert torch.equal(model(x, memory), model(x, memory))


@pytest.mark.parametrize("position", POSITIONS)
def test_gradient_flows_into_a_given_memory(position: str) -> None:
    config = FeedbackConfig(num_tokens=11, dim=4, depth=1, mem_len=3, heads=1, dim_head=3, position=position)
    model = Case(config, 1, 3, 0, 0).model()
    keys, values = torch.randn(2, 1, 2, 3, dtype=torch.float64)

    def loss(keys: Tensor, values: Tensor) -> Tensor:
        return model(torch.tensor([[1, 2, 3]]), Memory(keys, values)).square().sum()

    assert torch.autograd.gradcheck(loss, (keys.requires_grad_(), values.requires_grad_()))


def test_a_normed_memory_does_not_see_the_scale_of_the_states() -> None:
    """With states of any size the keys stay as large as those of a normalised vector."""
    torch.manual_seed(0)
    decoder = FeedbackDecoder(dim=16, depth=2, mem_len=4, seq_len=1, heads=2, dim_head=8, norm_memory=True)
    x = torch.randn(2, 6, 16)
    _, memory = decoder(1e6 * x, return_memory=True)
    bound = decoder.stack.to_kv.weight.norm(dim=1).max() * 16**0.5
    assert memory.keys.abs().max() <= bound
    assert memory.values.abs().max() <= bound
