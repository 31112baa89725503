"""All variants: the fast ways compute the definition, which is checked by hand and by finite differences."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from cases import definition
from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer, InputError
from feedback_transformer_pytorch.recurrence import WalkRequest, fused, stepwise
from feedback_transformer_pytorch.recurrence.layout import plan
from feedback_transformer_pytorch.recurrence.layout.buffer import MemoryBuffer
from feedback_transformer_pytorch.recurrence.layout.tape import Layout
from feedback_transformer_pytorch.recurrence.native import applicability
from random_variants import NUM_TOKENS, Variant, variants

BASE = FeedbackConfig(num_tokens=NUM_TOKENS, dim=6, depth=2, mem_len=3, seq_len=1, heads=2, dim_head=3)
AUTHORS: dict[str, Any] = {
    "kv": "per_layer", "memory_norm": "layer", "position": "learned", "feedforward": "relu", "output_bias": False,
    "memory_start": "zeros", "carry": "state",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tests must have several strips and chunks; what is not written is NaN."""
    monkeypatch.setattr(plan, "STRIP_QUERIES", 4)
    monkeypatch.setattr(plan, "CHUNK_ROWS", 20)
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def run(case: Variant, model: FeedbackTransformer, context: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
    """Two calls, the second behind the memory of the first, and all gradients through both."""
    model.zero_grad()
    if context is not None:
        context.grad = None
    tokens, flags = case.tokens(), case.flags()
    torch.manual_seed(7)  # dropout
    first, memory = model(tokens[:, : case.time // 2 + 1], return_memory=True, context=context, context_mask=mask)
    logits, left = model(tokens, memory, True, context=context, context_mask=mask, **flags)
    weight = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    total = (logits * weight).sum() + first.sin().sum() + sum(tensor.sin().sum() for tensor in left.tensors)
    total.backward()
    found = {"first": first, "logits": logits}
    found |= {f"memory {number}": tensor for number, tensor in enumerate(left.tensors)}
    found |= {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    if context is not None and context.grad is not None:
        found["grad context"] = context.grad
    return {name: tensor.detach() for name, tensor in found.items()}


@settings(max_examples=200)
@given(variants())
def test_all_variants_by_torch_operations_and_the_kernel(case: Variant) -> None:
    model, (context, mask) = case.model(implementation="fused"), case.context()
    definition(model, lambda: run(case, model, context, mask)).assert_agrees(run(case, model, context, mask))


@pytest.mark.parametrize(
    "changes",
    [
        AUTHORS,
        AUTHORS | {"kv": "shared"},
        {"norm": "post", "position": "learned", "feedforward": "relu"},
        {"adaptive_span": True, "span_ramp": 2, "position": "learned"},
        {"context_dim": 4, "seq_len": 2},
        {"stored": 1, "memory_norm": "plain", "feedforward_dim": 5},
    ],
    ids=str,
)
def test_gradcheck(changes: dict[str, Any]) -> None:
    """Finite differences against the function itself, for every differentiable input."""
    config = dataclasses.replace(BASE, dim=4, heads=1, kv_heads=1, mem_len=2, **changes)
    model = Variant(config, 1, 4, 0, False, False).model()
    stack = model.decoder.stack
    names = [name for name, _ in stack.named_parameters()]
    count = 2
    keys, values = torch.randn(2, 1, count, config.memory_dim, dtype=torch.float64)
    context = [torch.randn(1, 3, 4, dtype=torch.float64)] if config.context_dim else []

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = stack

        def forward(self, x: Tensor, keys: Tensor, values: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
            walked = fused(self.stack, WalkRequest(x, keys, values, None, *context))
            return tuple(tensor for tensor in walked if tensor is not None)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, parameters = tensors[: 3 + len(context)], tensors[3 + len(context) :]
        named = {f"stack.{name}": p for name, p in zip(names, parameters, strict=True)}
        found: tuple[Tensor, ...] = torch.func.functional_call(Wrapped(), named, inputs)
        return found

    x = torch.randn(1, 4, config.dim, dtype=torch.float64)
    tensors = [t.detach().clone().requires_grad_() for t in (x, keys, values, *context, *stack.parameters())]
    assert torch.autograd.gradcheck(function, tensors, fast_mode=False)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_carried_states_make_keys_with_the_weights_of_the_next_call() -> None:
    """And their gradients pass into the call before, so that two calls are one."""
    model = Variant(dataclasses.replace(BASE, **AUTHORS), 2, 7, 0, False, False).model()
    tokens = torch.randint(0, NUM_TOKENS, (2, 7))
    whole = model(tokens)
    first, memory = model(tokens[:, :4], return_memory=True)
    second = model(tokens[:, 4:], memory)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(whole[:, -1].sum(), parameters, allow_unused=True)
    found = torch.autograd.grad(second[:, -1].sum(), parameters, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_zero_states_are_attended_to_after_a_reset_too() -> None:
    model = Variant(dataclasses.replace(BASE, **AUTHORS), 1, 9, 0, False, False).model()
    tokens = torch.randint(0, NUM_TOKENS, (1, 9))
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[0, 5] = True
    torch.testing.assert_close(model(tokens, reset=reset)[:, 5:], model(tokens[:, 5:]))
    empty = Variant(dataclasses.replace(model.config, memory_start="empty"), 1, 9, 0, False, False).model()
    empty.load_state_dict(model.state_dict())
    assert not torch.allclose(model(tokens)[:, 0], empty(tokens)[:, 0])


def test_a_span_that_reaches_little_leaves_out_the_slots_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(BASE, mem_len=8, adaptive_span=True, span_ramp=2, span_trim=1, position="learned")
    model = Variant(config, 2, 12, 0, False, False).model()
    for layer in model.layers:
        torch.nn.init.constant_(layer.attention.span.ratio, 0.1)
    seen = []
    plain = MemoryBuffer.__init__

    def noted(self: MemoryBuffer, layout: Layout, *arguments: Any) -> None:
        seen.append(layout.plan.slots)
        plain(self, layout, *arguments)

    monkeypatch.setattr(MemoryBuffer, "__init__", noted)
    tokens = torch.randint(0, NUM_TOKENS, (2, 12))
    logits, memory = model(tokens, return_memory=True)
    assert seen == [3]  # ceil(0.1 * 8) + 2
    assert memory.keys.shape[1] == 8  # spans may grow
    model.implementation = "stepwise"
    torch.testing.assert_close(model(tokens), logits)


def test_the_mask_of_a_span_by_hand() -> None:
    config = dataclasses.replace(BASE, mem_len=4, adaptive_span=True, span_ramp=2, span_init=0.5)
    span = FeedbackTransformer.from_config(config).layers[0].attention.span
    # span 2 of 4 slots, ramp 2: distances 1 to 3 whole, 4 a half
    mask = span.soft_mask(torch.tensor([1, 2, 3, 4]))
    torch.testing.assert_close(mask, torch.tensor([[1.0, 1.0, 1.0, 0.5]]).expand(2, 4))
    out = span(torch.full((1, 2, 1, 4), 0.25), torch.tensor([[4, 3, 2, 1]]))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([0.5, 1, 1, 1]) / 3.5)
    assert span.loss().item() == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": "post", "memory_norm": "layer"}, "norm='pre'"),
        ({"carry": "normed_state"}, "memory_norm='layer'"),
        ({"adaptive_span": True, "position": "legacy"}, "true distances"),
        ({"stored": 3}, "from 0 to depth=2"),
        ({"stored": 1, "keep_last_hidden": True}, "give one of the two"),
        ({"memory_norm": "layer", "norm_memory": True}, "give one of the two"),
        ({"feedforward": "swiglu"}, "'geglu' or 'relu'"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(BASE, **changes)


def test_what_depends_on_the_window_cannot_be_changed_by_setting_it() -> None:
    spans = FeedbackTransformer.from_config(dataclasses.replace(BASE, adaptive_span=True))
    with pytest.raises(InputError, match="parts of it"):
        spans.mem_len = 2
    learned = FeedbackTransformer.from_config(dataclasses.replace(BASE, position="learned"))
    learned.mem_len = learned.mem_len
    with pytest.raises(InputError, match=r"mem_len \+ seq_len cannot be set to 9 \+ 1: .* vectors for 4 distances"):
        learned.mem_len = 9
    assert learned.mem_len == BASE.mem_len


@pytest.mark.parametrize(
    ("spans", "changes"), [(False, {"mem_len": 2}), (False, {"seq_len": 1}), (True, {"seq_len": 1})]
)
def test_a_shorter_window_of_learned_vectors_is_computed_fast(spans: bool, changes: dict[str, int]) -> None:
    config = dataclasses.replace(BASE, position="learned", mem_len=4, seq_len=2, adaptive_span=spans)
    model = FeedbackTransformer.from_config(config).double()
    for name, value in changes.items():
        setattr(model, name, value)
    tokens = torch.randint(0, NUM_TOKENS, (2, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a walk that falls back to the definition
        logits = model(tokens)
        grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
    model.implementation = "stepwise"
    expected = model(tokens)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), list(model.parameters())))


def test_other_names_of_hyperparameters() -> None:
    assert dataclasses.replace(BASE, norm_memory=True).memory_norm == "plain"
    assert dataclasses.replace(BASE, keep_last_hidden=True).stored == "top"


def test_a_context_is_there_if_and_only_if_the_model_has_one() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(InputError, match="context_dim=C"):
        FeedbackTransformer.from_config(BASE)(tokens, context=torch.zeros(1, 2, 4))
    model = FeedbackTransformer.from_config(dataclasses.replace(BASE, context_dim=4))
    with pytest.raises(InputError, match="context is missing"):
        model(tokens)
    with pytest.raises(InputError, match="must be"):
        model(tokens, context=torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match="must be"):
        model(tokens, context=torch.zeros(1, 0, 4))
    with pytest.raises(InputError, match="give both the same"):
        model(tokens, context=torch.zeros(1, 2, 4, dtype=torch.float64))


def test_spans_reach_as_far_backward_as_forward_where_parameters_are_lent() -> None:
    config = dataclasses.replace(BASE, mem_len=8, adaptive_span=True, span_ramp=2, span_trim=1)
    model = Variant(config, 2, 12, 0, False, recompute=True).model()
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in parameters.items():
        if name.endswith("span.ratio"):
            parameter.fill_(0.7)
            torch.nn.init.zeros_(model.get_parameter(name))
        parameter.requires_grad_()
    tokens, found = torch.randint(0, NUM_TOKENS, (2, 12)), []
    for implementation in ("stepwise", "fused"):
        model.implementation = implementation  # type: ignore[assignment]
        total = torch.func.functional_call(model, parameters, (tokens,)).square().sum()
        found.append(torch.autograd.grad(total, list(parameters.values()), allow_unused=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_no_gradient_walks_agree_with_walks_that_keep_everything() -> None:
    for changes in (AUTHORS, {"norm": "post"}, {"adaptive_span": True}):
        model = Variant(dataclasses.replace(BASE, **changes), 2, 9, 0, False, False).model(implementation="fused")
        tokens = torch.randint(0, NUM_TOKENS, (2, 9))
        kept, memory = model(tokens, return_memory=True)
        with torch.no_grad():
            free, free_memory = model(tokens, return_memory=True)
        assert torch.equal(kept, free)
        assert all(map(torch.equal, memory.tensors, free_memory.tensors))


def test_the_definition_is_short() -> None:
    import inspect

    assert len(inspect.getsource(inspect.getmodule(stepwise)).splitlines()) < 100  # type: ignore[arg-type]
