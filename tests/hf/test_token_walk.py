"""A walk that is set up once reads what calls of the decoder would read, and ends where something changes."""

import copy
from collections.abc import Iterator
from typing import Any

import peft
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
    to_q = model.model.decoder.stack.layers[1].attention.to_q
    to_q.weight = torch.nn.Parameter(2 * to_q.weight.detach())
    yield


def swap_the_data(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    to_q = model.model.decoder.stack.layers[1].attention.to_q
    to_q.weight.data = 2 * to_q.weight.data
    yield


def replace_a_module(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    attention = model.model.decoder.stack.layers[0].attention
    attention.to_q = torch.nn.Linear(8, 8, bias=False).double()
    yield


def replace_a_weight_by_one_of_inference_mode(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    to_q = model.model.decoder.stack.layers[1].attention.to_q
    with torch.inference_mode():
        to_q.weight = torch.nn.Parameter(2 * to_q.weight, requires_grad=False)
    yield


def change_an_eps(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    model.model.decoder.stack.layers[0].attention.norm.eps = 0.5
    yield


def replace_a_forward(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    to_q = model.model.decoder.stack.layers[0].attention.to_q
    to_q.forward = lambda x: 2 * torch.nn.functional.linear(x, to_q.weight)
    yield


def hook_inside(model: FeedbackTransformerForCausalLM) -> Iterator[None]:
    to_q = model.model.decoder.stack.layers[0].attention.to_q
    handle = to_q.register_forward_hook(lambda module, inputs, output: 2 * output)
    yield
    handle.remove()


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
    change_a_weight, replace_a_weight, swap_the_data, replace_a_weight_by_one_of_inference_mode, replace_a_module,
    change_an_eps, replace_a_forward, hook, hook_inside, with_gradients, in_inference_mode, another_implementation,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_walk_ends_where_something_changes(change: object) -> None:
    """What follows is what a cache without a walk gives."""
    compare(make_model(2), change)


def compare(model: Any, change: Any) -> None:
    """A cache with a walk, and one without, which has to read the same. `change` yields what calls are given then."""
    x = torch.randint(0, 11, (2, 30))
    pasts = [FeedbackCache(), FeedbackCache()]
    pasts[1].activate_past_recording()  # it has no walk
    for past in pasts:
        for part in x[:, :9].split(1, dim=1):
            model(input_ids=part, past_key_values=past)
    changing = change(model)
    given = next(changing) or {}
    for part in x[:, 9:].split([1, 3, 1, 1, 15], dim=1):
        a, b = (model(input_ids=part, past_key_values=past, **given).logits.detach() for past in pasts)
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    next(changing, None)


def disable_adapters(model: Any) -> Iterator[None]:
    with model.disable_adapter():
        yield


def choose_another_adapter(model: Any) -> Iterator[None]:
    model.set_adapter("second")
    yield


def scale_adapters(model: Any) -> Iterator[None]:
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(3)
    yield


def merge_adapters(model: Any) -> Iterator[None]:
    model.merge_adapter()
    yield


def remove_adapters(model: Any) -> Iterator[None]:
    model.unload()
    yield


def choose_adapters_by_row(model: Any) -> Iterator[dict[str, list[str]]]:
    yield {"adapter_names": ["second", "__base__"]}


ADAPTERS = [
    disable_adapters, choose_another_adapter, scale_adapters, merge_adapters, remove_adapters, choose_adapters_by_row,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")
@pytest.mark.filterwarnings(r"ignore::Warning:(transformers|peft)\..*")
@pytest.mark.parametrize("change", ADAPTERS)
@torch.no_grad()
def test_a_walk_ends_where_adapters_change(change: object) -> None:
    options: dict[str, Any] = {"r": 2, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(make_model(2), peft.LoraConfig(target_modules=["to_q", "to_kv"], **options))
    model.add_adapter("second", peft.LoraConfig(target_modules=["to_q"], **options))
    compare(model.double().eval(), change)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("rows", [[1, 0], [1, 1, 0]])
def test_rows_are_chosen_outside_of_the_inference_mode(model: Any, mode: Any, rows: list[int]) -> None:
    x, past = torch.randint(0, 11, (2, 12)), FeedbackCache()
    with torch.inference_mode():
        for part in x[:, :9].split(1, dim=1):
            model(part, past_key_values=past)
    with mode():
        past.reorder_cache(torch.tensor(rows))
    with torch.no_grad():
        found = model(x[rows, 9:], past_key_values=past).logits
        torch.testing.assert_close(found, model(x[rows]).logits[:, 9:], atol=1e-10, rtol=0)


def test_gradients_flow_past_tokens_without() -> None:
    """Tokens that are read without gradients, and do not fill a segment, leave the memory and its gradients alone."""
    model, x = make_model(4), torch.randint(0, 11, (2, 15))
    pasts = [FeedbackCache(), FeedbackCache()]
    pasts[1].activate_past_recording()  # it has no walk
    gradients = []
    for past in pasts:
        model(x[:, :8], past_key_values=past)
        with torch.no_grad():
            model(x[:, 8:9], past_key_values=past)
        loss = model(x[:, 9:], past_key_values=past).logits.square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .*-wrapped function")
@torch.no_grad()
def test_a_compiled_model_reads_the_same() -> None:
    model, x, past = make_model(1), torch.randint(0, 11, (2, 8)), FeedbackCache()
    compiled = torch.compile(model, backend="eager")
    found = torch.cat([compiled(part, past_key_values=past).logits for part in x.split([5, 1, 2], dim=1)], dim=1)
    torch.testing.assert_close(found, model(x).logits, atol=1e-10, rtol=0)


@torch.no_grad()
def test_a_copy_goes_its_own_way(model: FeedbackTransformerForCausalLM) -> None:
    x = torch.randint(0, 11, (2, 30))
    past = FeedbackCache()
    for part in x[:, :15].split(1, dim=1):
        model(part, past_key_values=past)
    walk = past._walk
    other = copy.deepcopy(past)
    assert past._walk is walk is not None
    for part in x[:, 15:].split(1, dim=1):
        found = model(part, past_key_values=other).logits
        model(1 + part % 9, past_key_values=past)
    torch.testing.assert_close(found, model(x).logits[:, -1:], atol=1e-10, rtol=0)
