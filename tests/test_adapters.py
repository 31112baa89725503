"""A stack with LoRA adapters takes the fused walk: the same outputs and gradients as the definition."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from feedback_transformer_pytorch import FeedbackTransformer, generate
from feedback_transformer_pytorch.recurrence import describe_walk
from feedback_transformer_pytorch.recurrence.adapters import without_adapters

LINEARS = ["to_q", "to_kv", "to_out", "to_hidden"]
SIZE = {"num_tokens": 11, "dim": 8, "depth": 2, "mem_len": 6, "heads": 2, "dim_head": 4, "position": "relative"}
VARIANTS: list[dict[str, Any]] = [
    {"seq_len": 1},
    {"seq_len": 3, "kv_heads": 1},
    {"kv": "per_layer", "memory_norm": "layer", "carry": "state"},
    {"norm": "post", "kv_heads": 1},
    {"memory_norm": "plain", "feedforward": "relu", "memory_start": "zeros", "output_bias": False},
]
X = torch.randint(0, 11, (2, 13), generator=torch.Generator().manual_seed(0))


def adapted(variant: dict[str, Any] = VARIANTS[0], linears: list[str] = LINEARS, **options: Any) -> FeedbackTransformer:
    """A random model in float64 with adapters that are not at zero."""
    torch.manual_seed(1)
    model = FeedbackTransformer(**SIZE | variant).double()
    config = LoraConfig(r=2, lora_alpha=3, target_modules=linears, init_lora_weights=False, **options)
    inject_adapter_in_model(config, model.decoder)
    return model.double()


def results(model: FeedbackTransformer, implementation: Any) -> list[Tensor]:
    """Logits, memory and the gradients of all parameters that have any."""
    model.implementation = implementation
    model.zero_grad()
    logits, memory = model(X, return_memory=True)
    torch.manual_seed(2)
    (logits * torch.randn_like(logits)).sum().add(sum((t**2).sum() for t in memory.tensors)).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    return [logits, *memory.tensors, *gradients]


def is_walked(model: FeedbackTransformer) -> bool:
    x = torch.zeros(1, 4, 8, dtype=torch.float64)
    return describe_walk(model.decoder.stack, x) != "the definition"


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_fused_is_the_definition(variant: dict[str, Any], frozen: bool) -> None:
    model = adapted(variant)
    for name, parameter in model.decoder.named_parameters():
        parameter.requires_grad_("lora_" in name or not frozen)
    assert is_walked(model)
    found, expected = results(model, "fused"), results(model, "stepwise")
    assert len(found) == len(expected) > 16
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_adapters_change_the_function() -> None:
    model = adapted()
    logits = model(X)
    for adapter in without_adapters(model.decoder.stack).adapters.values():
        adapter.enable_adapters(False)
    assert is_walked(model)
    assert (model(X) - logits).abs().max() > 1e-3
    model.implementation = "stepwise"
    plain = model(X)
    model.implementation = "fused"
    torch.testing.assert_close(model(X), plain, atol=1e-10, rtol=0)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_merged_and_several_adapters() -> None:
    model = adapted()
    second = LoraConfig(r=1, target_modules=["to_q"], init_lora_weights=False)
    inject_adapter_in_model(second, model.decoder, adapter_name="second")
    model.double()
    adapters = without_adapters(model.decoder.stack).adapters
    for adapter in adapters.values():
        adapter.set_adapter(["default", "second"])
    before = results(model, "fused")
    for a, b in zip(before, results(model, "stepwise"), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    for adapter in adapters.values():
        adapter.merge()
    assert is_walked(model)
    torch.testing.assert_close(results(model, "fused")[0], before[0], atol=1e-10, rtol=0)


def disabled_while_merged(model: FeedbackTransformer) -> None:
    for adapter in without_adapters(model.decoder.stack).adapters.values():
        adapter.merge()
        adapter.enable_adapters(False)
        adapter._disable_adapters = True


def hooked(model: FeedbackTransformer) -> None:
    adapter = model.decoder.stack.layers[0].attention.to_q
    adapter.lora_A["default"].register_forward_hook(lambda module, args, out: 2 * out)


def normed(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.decoder.stack.layers[0].attention.to_q.lora_A["default"])


def with_scaling_that_learns(model: Any) -> None:
    model.decoder.stack.layers[0].attention.to_q.scaling["default"] = torch.nn.Parameter(torch.tensor(2.5))


def in_another_type(model: FeedbackTransformer) -> None:
    model.decoder.stack.layers[0].attention.to_q.lora_A.float()


@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")
@pytest.mark.parametrize("change", [disabled_while_merged, hooked, normed, with_scaling_that_learns, in_another_type])
def test_what_is_not_known_takes_the_definition(change: Any) -> None:
    model = adapted()
    change(model)
    assert not is_walked(model)


@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")
def test_adapters_with_dropout_or_decomposition_take_the_definition() -> None:
    dropping = adapted(lora_dropout=0.5)
    assert not is_walked(dropping)
    assert is_walked(dropping.eval())
    assert not is_walked(adapted(use_dora=True))


@torch.no_grad()
def test_generation_reads_adapters() -> None:
    model = adapted().eval()
    found = torch.stack(list(generate(model, X, max_new_tokens=12, temperature=0)), dim=1)
    model.implementation = "stepwise"
    text = X
    for _ in range(12):
        text = torch.cat([text, model(text)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, text[:, X.shape[1] :])


@torch.no_grad()
def test_an_adapter_of_the_embedding_is_read() -> None:
    model = FeedbackTransformer(**SIZE, seq_len=2).eval()
    config = LoraConfig(r=2, target_modules=["token_emb", "to_q"], init_lora_weights=False)
    inject_adapter_in_model(config, model)
    (found,) = generate(model, X, max_new_tokens=1, temperature=0)
    assert torch.equal(found, model(X)[:, -1].argmax(-1))
