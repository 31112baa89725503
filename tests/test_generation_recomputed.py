"""What is written token by token is what the definition computes of the whole text, over all variants."""

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cases import definition
from feedback_transformer_pytorch import (
    AuthorsTransformer,
    FeedbackConfig,
    FeedbackTransformer,
    ParallelTransformer,
    TransformerXL,
    generate,
)
from feedback_transformer_pytorch.generation import Model, Reader
from feedback_transformer_pytorch.recurrence import Incremental, incremental
from random_variants import NUM_TOKENS, Variant, variants

BASELINES = [ParallelTransformer, TransformerXL, AuthorsTransformer]
FIELDS: dict[str, Any] = {"num_tokens": NUM_TOKENS, "dim": 8, "depth": 2, "mem_len": 6, "heads": 2, "dim_head": 4}


def context_of(variant: Variant) -> dict[str, Tensor]:
    context, mask = variant.context()
    given = {"context": None if context is None else context.detach(), "context_mask": mask}
    return {name: value for name, value in given.items() if value is not None}


def written(model: Model, prompt: Tensor, count: int, **context: Tensor) -> Tensor:
    """The prompt (B, n) and what a model writes behind it: (B, n + count)."""
    tokens = list(generate(model, prompt, max_new_tokens=count, temperature=0, **context))
    return torch.cat([prompt, torch.stack(tokens, 1)], 1)


def logits_of_whole(model: Model, text: Tensor, **context: Tensor) -> Tensor:
    """(B, n, V); every token is followed by another one in its segment, as in training."""
    return model(F.pad(text, (0, -text.shape[1] % model.config.seq_len)), **context)[:, : text.shape[1]]


def assert_is_argmax(model: Model, text: Tensor, first: int, **context: Tensor) -> None:
    likeliest = logits_of_whole(model, text[:, :-1], **context)[:, first - 1 :].argmax(-1)
    assert torch.equal(likeliest, text[:, first:])


@given(variants(), st.integers(1, 4))
def test_written_is_recomputed(variant: Variant, tokens_at_once: int) -> None:
    """At least 4 M tokens, greedily: the argmax and the logits of the definition over the whole text."""
    model, prompt, context = variant.model().eval(), variant.tokens(), context_of(variant)
    with mock.patch.object(incremental, "TOKENS_AT_ONCE", tokens_at_once):
        text = written(model, prompt, 4 * variant.config.mem_len + 3, **context)
        reader = Reader(model, **context)
        found = torch.stack([reader.read(token) for token in text.split(1, dim=1)], 1)
    exact = definition(model, lambda: {"logits": logits_of_whole(model, text, **context)})
    exact.assert_agrees({"logits": found})
    model.implementation = "stepwise"
    assert_is_argmax(model, text, prompt.shape[1], **context)


@pytest.mark.parametrize("cls", BASELINES)
def test_baselines_write_what_they_recompute(cls: Any) -> None:
    model = cls(**FIELDS, memory_start="zeros").double().eval()
    prompt = torch.randint(0, NUM_TOKENS, (2, 5))
    assert_is_argmax(model, written(model, prompt, 30), 5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seq_len", [1, 4])
def test_fifty_prompts_of_a_thousand_tokens_are_recomputed(seq_len: int) -> None:
    config = FeedbackConfig(
        num_tokens=50, dim=32, depth=3, mem_len=64, seq_len=seq_len, heads=4, dim_head=8, position="relative",
        memory_norm="plain",
    )  # fmt: skip
    model = FeedbackTransformer.from_config(config).double().eval()
    prompts = [torch.randint(0, 50, (n,)) for n in range(1, 51)]
    rows = torch.stack(list(generate(model, prompts, max_new_tokens=1000, temperature=0)), 1)
    model.implementation = "stepwise"
    texts = [torch.cat([prompt, row]) for prompt, row in zip(prompts, rows, strict=True)]
    with torch.no_grad():  # what is behind the end of a text changes nothing before it
        likeliest = logits_of_whole(model, pad_sequence(texts, batch_first=True)).argmax(-1)
    for prompt, row, found in zip(prompts, rows, likeliest, strict=True):
        assert torch.equal(found[len(prompt) - 1 : len(prompt) + 999], row)


@settings(max_examples=10)
@given(variants())
def test_a_hook_while_reading_forgets_nothing(variant: Variant) -> None:
    """Hooks are called, so from then on calls of the model read."""
    model, tokens = variant.model().eval(), variant.tokens().repeat(1, 2)
    context, half = context_of(variant), tokens.shape[1] // 2
    reader, called = Reader(model, **context), list[nn.Module]()
    for token in tokens[:, :half].split(1, dim=1):
        reader.read(token)
    hook = model.register_forward_hook(lambda module, *_: called.append(module))
    found = [reader.read(token) for token in tokens[:, half:].split(1, dim=1)]
    hook.remove()
    assert called
    expected = logits_of_whole(model, tokens, **context)[:, half:]
    torch.testing.assert_close(torch.stack(found, 1), expected, atol=1e-9, rtol=1e-9)


@settings(max_examples=25)
@given(variants(), st.integers(1, 6))
def test_the_storage_stays_the_same(variant: Variant, tokens_at_once: int) -> None:
    """After 20 M tokens all buffers are those of the start."""
    with mock.patch.object(incremental, "TOKENS_AT_ONCE", tokens_at_once):
        reader = Reader(variant.model().eval(), **context_of(variant))
        token = variant.tokens()[:, :1]
        reader.read(token)
        walk = reader._walk
        assert isinstance(walk, Incremental)
        before = storage(walk)
        for _ in range(20 * variant.config.mem_len):
            token = reader.read(token).argmax(-1, keepdim=True)
    assert reader._walk is walk
    assert storage(walk) == before
    assert reader.memory.tensors[0].shape[1] == variant.config.mem_len


def storage(walk: Incremental) -> dict[str, tuple[int, int]]:
    """Addresses and sizes of what a walk writes to."""
    buffer = walk._walk.buffer
    tensors = {"keys, values": buffer.buffer, "stored": buffer.stored}
    return {name: (t.data_ptr(), t.untyped_storage().nbytes()) for name, t in tensors.items() if t is not None}


@pytest.mark.parametrize("cls", BASELINES)
def test_the_state_of_baselines_does_not_grow(cls: Any) -> None:
    reader = Reader(cls(**FIELDS, memory_start="zeros").eval())
    sizes = []
    for _ in range(20 * FIELDS["mem_len"]):
        reader.read(torch.randint(0, NUM_TOKENS, (2, 1)))
        sizes.append(0 if reader.memory is None else reader.memory.states.untyped_storage().nbytes())
    assert len(set(sizes[2 * FIELDS["mem_len"] :])) == 1


@given(variants(), st.booleans(), st.data())
def test_rows_are_reordered_exactly(variant: Variant, as_many: bool, data: st.DataObject) -> None:
    """Behind `select` a reader holds and reads what a reader of the selected rows' text does."""
    model, tokens, context = variant.model().eval(), variant.tokens(), context_of(variant)
    text = torch.cat([tokens, tokens.flip(1)], 1)
    least, most = (variant.batch, variant.batch) if as_many else (1, 4)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, variant.batch - 1), min_size=least, max_size=most)))
    selected = {name: value[rows] for name, value in context.items()}
    with mock.patch.object(incremental, "TOKENS_AT_ONCE", 3):
        reader, expected = Reader(model, **context), Reader(model, **selected)
        for token in tokens.split(1, dim=1):
            reader.read(token)
            expected.read(token[rows])
        reader.select(rows)
        for ours, theirs in zip(reader.memory.tensors, expected.memory.tensors, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        found = torch.stack([reader.read(token[rows]) for token in text[:, variant.time :].split(1, dim=1)], 1)
    whole = definition(model, lambda: {"x": logits_of_whole(model, text[rows], **selected)[:, variant.time :]})
    whole.assert_agrees({"x": found})


def test_rows_are_reordered_in_place() -> None:
    model = FeedbackTransformer(**dataclasses.asdict(FeedbackConfig(**FIELDS)) | {"seq_len": 1}).eval()
    reader = Reader(model)
    reader.read(torch.tensor([[1], [2]]))
    assert reader._walk is not None
    before = storage(reader._walk)
    reader.select(torch.tensor([1, 1]))
    assert storage(reader._walk) == before
