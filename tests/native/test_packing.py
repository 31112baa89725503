"""Weights in float32 that are rounded to int8 or bfloat16: the kernel reads them as such, and nothing else changes."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer
from feedback_transformer_pytorch.recurrence.layout.rounding import round_linears
from feedback_transformer_pytorch.recurrence.native import applicability, kernel
from feedback_transformer_pytorch.recurrence.native.library import NARROW, library
from feedback_transformer_pytorch.recurrence.native.packing import Packing

CONFIG = FeedbackConfig(
    num_tokens=11, dim=40, depth=2, mem_len=7, seq_len=1, heads=4, dim_head=8, norm_memory=True, position="relative"
)


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types that weights are packed in, as the kernel's functions are called."""
    if library() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)
    monkeypatch.setattr(kernel, "WORK_OF_A_THREAD", 0)
    found: list[str] = []

    class Recorded(Packing):
        def __init__(self, name: str, *arguments: Any) -> None:
            found.append(name)
            super().__init__(name, *arguments)

    monkeypatch.setattr(kernel, "Packing", Recorded)
    return found


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def small(dtype: torch.dtype | None, **changes: Any) -> FeedbackTransformer:
    """A model whose weights are rounded, and none of whose norms, biases and mixing weights is trivial."""
    model = FeedbackTransformer.from_config(dataclasses.replace(CONFIG, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if dtype is not None:
        round_linears(model, dtype)
    return model


@torch.no_grad()
def states_and_memory(model: FeedbackTransformer, x: Tensor) -> dict[str, Tensor]:
    states, memory = model.decoder(model.token_emb(x), return_memory=True)
    return {"states": states, "keys": memory.keys, "values": memory.values}


def assert_exact(model: FeedbackTransformer, x: Tensor) -> None:
    """As near to the definition of the same weights in float64 as its evaluation in float32 is."""
    definition = copy.deepcopy(model)
    definition.implementation = "stepwise"
    found, in_float32 = states_and_memory(model, x), states_and_memory(definition, x)
    for name, exact in states_and_memory(definition.double(), x).items():
        errors = [float((each[name] - exact).norm() / exact.norm()) for each in (found, in_float32)]
        assert errors[0] <= 3 * errors[1] + 1e-6, name


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_heads": 1},
        {"kv_heads": 2, "seq_len": 3},
        {"seq_len": 4, "position": "t5"},
        {"dim": 33, "dim_head": 5, "heads": 3, "kv_heads": 3},
        {"dim": 7, "dim_head": 1, "heads": 1, "kv_heads": 1, "depth": 1},
        {"dim": 64, "dim_head": 64, "heads": 2, "kv_heads": 2, "memory_norm": "none", "mem_len": 40},
        {"dim": 129, "dim_head": 32, "heads": 2, "kv_heads": 1, "stored": "top"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("threads")
def test_every_shape(changes: dict[str, Any], dtype: torch.dtype, names: list[str]) -> None:
    assert_exact(small(dtype, **changes), torch.randint(0, 11, (3, 23)))
    assert names == [NARROW[dtype]]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("streams", [1, 7])
@pytest.mark.parametrize("rows", range(1, 18))
def test_every_number_of_rows(rows: int, streams: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library(), "bytes_to_stream", lambda: 0)
    monkeypatch.setattr(kernel, "STREAMS", streams)
    assert_exact(small(dtype, dim=136), torch.randint(0, 11, (rows, 6)))


def test_what_is_not_rounded_is_read_in_float32(names: list[str]) -> None:
    model = small(torch.int8)
    with torch.no_grad():
        model.layers[1].feedforward.to_out.weight[3, 5] += 1e-4
    states_and_memory(model, torch.randint(0, 11, (2, 9)))
    assert names == ["float32"]


def test_training_and_autocast_read_weights_as_before(names: list[str]) -> None:
    model, x = small(torch.int8), torch.randint(0, 11, (2, 9))
    model(x).sum().backward()
    assert names == ["float32", "float32"]
    with torch.autocast("cpu", torch.bfloat16):
        states_and_memory(model, x)
    assert names[2] in ("bfloat16", "bfloat16_pairs")


def test_other_types_are_read_as_they_are(names: list[str]) -> None:
    states_and_memory(small(torch.int8).double(), torch.randint(0, 11, (2, 9)))
    assert names == ["float64"]
