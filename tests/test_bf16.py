"""bf16 under autocast on a CPU: each way to walk is about as near to float64 as the definition is."""

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch

from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer
from feedback_transformer_pytorch.recurrence.layout.plan import Plan
from feedback_transformer_pytorch.recurrence.layout.precision import choose_precision
from feedback_transformer_pytorch.recurrence.native import applicability
from feedback_transformer_pytorch.recurrence.native.library import library
from test_fused import relative_errors

CONFIG = FeedbackConfig(num_tokens=50, dim=64, depth=2, mem_len=8, seq_len=1, heads=2, dim_head=32, position="relative")
# By name: whether the kernel walks, and whether products multiply in bf16.
WAYS = {
    "torch, float32 products": (False, False),
    "torch, bf16 products": (False, True),
    "kernel, float32 products": (True, False),
    "kernel, bf16 products": (True, True),
}
# What an error may be, as a multiple of the definition's.
FORWARD, BACKWARD = 2, 3


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way that the machine can run, whatever it would choose."""
    use_kernel, in_bf16 = WAYS[request.param]
    compiled = library()
    if not use_kernel:
        monkeypatch.setattr(applicability, "library", lambda: None)
    elif compiled is None:
        pytest.skip("no C++ compiler")
    elif in_bf16 and not compiled.multiplies_bf16():
        pytest.skip("this CPU does not multiply in bf16")
    else:
        monkeypatch.setattr(compiled, "multiplies_bf16", lambda: int(in_bf16))
    monkeypatch.setattr("feedback_transformer_pytorch.recurrence.layout.precision.has_bf16", lambda: in_bf16)
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)
    return str(request.param)


SIZE = {"batch": 4, "time": 24, "autocast": True}


@functools.cache
def errors_of_definition(config: FeedbackConfig) -> dict[str, float]:
    return relative_errors(config, "stepwise", **SIZE)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_heads": 1},
        {"seq_len": 3},
        {"position": "t5"},
        {"norm_memory": True},
        {"dim": 63, "dim_head": 33},  # odd: the last of a row has no partner
    ],
    ids=str,
)
def test_as_near_to_float64_as_the_definition(way: str, changes: dict[str, Any], recompute: bool) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    expected, found = errors_of_definition(config), relative_errors(config, "fused", recompute=recompute, **SIZE)
    for name, error in found.items():
        allowed = BACKWARD if name.startswith("grad") else FORWARD
        assert error <= allowed * expected[name] + 1e-12, (name, error, expected[name])


def test_a_split_is_as_near_as_the_whole(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the parts have too few segments for the kernel: what is carried is in bf16 within a call too."""
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 8)
    model = FeedbackTransformer.from_config(CONFIG)
    x = torch.randint(0, CONFIG.num_tokens or 0, (4, 40))
    exact = copy.deepcopy(model).double()
    exact.implementation = "stepwise"
    with torch.no_grad():
        truth = exact(x)
        with torch.autocast("cpu", torch.bfloat16):
            definition = copy.deepcopy(model)
            definition.implementation = "stepwise"
            allowed = FORWARD * (definition(x) - truth).norm()
            for length in (40, 20, 5, 1):
                memory, parts = None, []
                for part in x.split(length, dim=1):
                    logits, memory = model(part, memory, return_memory=True)
                    assert memory.keys.dtype == memory.values.dtype == torch.bfloat16
                    parts.append(logits)
                assert (torch.cat(parts, 1) - truth).norm() <= allowed, length


def test_the_memory_that_is_walked_is_the_one_that_is_carried(way: str) -> None:
    """Splitting a text into calls changes no more than rounding in float32 does."""
    if way.endswith("bf16 products"):
        pytest.skip("a last digit in float32 may turn into one in bf16")
    model = FeedbackTransformer.from_config(CONFIG)
    x = torch.randint(0, CONFIG.num_tokens or 0, (3, 40))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model.to_logits.float()
        states = [model.decoder(model.token_emb(x), return_memory=True)]
        first, memory = model.decoder(model.token_emb(x[:, :20]), return_memory=True)
        second, memory = model.decoder(model.token_emb(x[:, 20:]), memory, return_memory=True)
    whole, split = states[0][0], torch.cat([first, second], 1)
    assert (split - whole).norm() <= 1e-4 * whole.norm()  # a last digit in bf16 is 4e-3


def test_the_kernel_multiplies_in_bf16_where_the_cpu_does() -> None:
    compiled = library()
    if compiled is None:
        pytest.skip("no C++ compiler")
    like = torch.zeros(1, 1, 1)
    plan = Plan(1, applicability.LEAST_SEGMENTS, 1, 1, 0)
    with torch.autocast("cpu", torch.bfloat16):
        of_torch = choose_precision(like)[1]
    assert applicability.unsupported_reason(plan, of_torch, like) is None
    precision = applicability.kernel_precision(of_torch, like)
    assert precision.inputs == (torch.bfloat16 if compiled.multiplies_bf16() else torch.float32)
    assert (precision.products, precision.weights, precision.memory) == (torch.float32, torch.bfloat16, torch.bfloat16)
