"""A walk that is set up once reads what calls of the decoder would read, and ends where something changes."""

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_model
from feedback_transformer_pytorch.hf import FeedbackCache, FeedbackTransformerForCausalLM
from feedback_transformer_pytorch.hf import token_walk as walks

MODELS = {
    "S=1": make_model(1),
    "S=4": make_model(4),
    "states": make_model(1, kv="per_layer", memory_norm="layer", carry="state"),
    "zeros": make_model(3, memory_start="zeros"),
}


@given(st.sampled_from(sorted(MODELS)), st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(0, 9))
@torch.no_grad()
def test_pieces_are_the_whole(name: str, lengths: list[int], seed: int) -> None:
    """Pieces of any length, with rows chosen in between."""
    model, past = MODELS[name], FeedbackCache()
    generator = torch.Generator().manual_seed(seed)
    text = torch.zeros(3, 0, dtype=torch.long)
    for length in lengths:
        text = torch.cat([text, torch.randint(0, 11, (len(text), length), generator=generator)], dim=1)
        found = model(text[:, -length:], past_key_values=past).logits
        expected = model(text, use_cache=False).logits[:, -length:]
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        rows = torch.randint(0, len(text), (int(torch.randint(1, 4, (), generator=generator)),), generator=generator)
        past.reorder_cache(rows)
        text = text[rows]
        assert past.batch_size == len(text)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one entry whenever a walk is set up."""
    starts: list[int] = []
    start = walks.start_walk

    def counting(*arguments: object) -> object:
        starts.append(1)
        return start(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(walks, "start_walk", counting)
    return starts


@pytest.mark.parametrize("padded", [False, True])
def test_generation_sets_up_one_walk(
    model: FeedbackTransformerForCausalLM, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = counted(monkeypatch)
    x = torch.randint(0, 11, (2, 20))
    mask = torch.ones_like(x)
    if padded:
        mask[0, :4] = 0  # a whole segment, so that rows end at the same place of one
    model.generate(x, attention_mask=mask, max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert len(starts) == 1


@torch.no_grad()
def change_a_weight(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    model.model.decoder.stack.layer_weight.add_(0.5)
    yield


def replace_a_weight(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    to_q = model.model.decoder.stack.blocks[1].attention.to_q
    to_q.weight = torch.nn.Parameter(2 * to_q.weight.detach())
    yield


def swap_the_data(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    to_q = model.model.decoder.stack.blocks[1].attention.to_q
    to_q.weight.data = 2 * to_q.weight.data
    yield


def replace_a_module(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    attention = model.model.decoder.stack.blocks[0].attention
    attention.to_q = torch.nn.Linear(8, 8, bias=False).double()
    yield


def hook(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    norm = model.model.decoder.norm
    handle = norm.register_forward_hook(lambda module, inputs, output: 2 * output)
    yield
    handle.remove()


def with_gradients(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    with torch.enable_grad():
        yield


def in_inference_mode(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    with torch.inference_mode():
        yield


def another_implementation(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    model.model.decoder.implementation = "stepwise"
    yield


CHANGES = [
    change_a_weight, replace_a_weight, swap_the_data, replace_a_module, hook, with_gradients, in_inference_mode,
    another_implementation,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_walk_ends_where_something_changes(change: object) -> None:
    """What follows is what a cache without a walk gives."""
    model, x = make_model(2), torch.randint(0, 11, (2, 30))
    pasts = [FeedbackCache(), FeedbackCache()]
    pasts[1].activate_past_recording()  # it has no walk
    for past in pasts:
        for part in x[:, :9].split(1, dim=1):
            model(part, past_key_values=past)
    changing = change(model)  # type: ignore[operator]
    next(changing)
    for part in x[:, 9:].split([1, 3, 1, 1, 15], dim=1):
        a, b = (model(part, past_key_values=past).logits.detach() for past in pasts)
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    next(changing, None)


@torch.no_grad()
def test_a_copy_goes_its_own_way(model: FeedbackTransformerForCausalLM) -> None:
    x = torch.randint(0, 11, (2, 30))
    past = FeedbackCache()
    for part in x[:, :15].split(1, dim=1):
        model(part, past_key_values=past)
    other = copy.deepcopy(past)
    for part in x[:, 15:].split(1, dim=1):
        found = model(part, past_key_values=other).logits
        model(1 + part % 9, past_key_values=past)
    torch.testing.assert_close(found, model(x).logits[:, -1:], atol=1e-10, rtol=0)
