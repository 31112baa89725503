"""Prompts of different lengths: every row is written as if it were alone."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feedback_transformer_pytorch import (
    AuthorsTransformer,
    FeedbackTransformer,
    InputError,
    ParallelTransformer,
    TransformerXL,
    generate,
)
from feedback_transformer_pytorch.generation.prompts import Prompts
from feedback_transformer_pytorch.generation.rows import RowsReader
from random_variants import NUM_TOKENS, Variant, variants
from test_generation_recomputed import FIELDS, context_of


def tokens_of(lengths: list[int]) -> list[Tensor]:
    return [torch.randint(0, NUM_TOKENS, (length,)) for length in lengths]


def assert_reads_as_if_alone(model: Any, prompts: list[Tensor], **context: Tensor) -> None:
    """Logits after the prompts and after each of ten more tokens, to 1e-12 of their size."""
    more = torch.randint(0, NUM_TOKENS, (len(prompts), 10))
    together, logits = RowsReader.start(model, Prompts.of(prompts), **context)
    found = [logits, *(together.read(token) for token in more.split(1, dim=1))]
    for row, prompt in enumerate(prompts):
        own = {name: value[row : row + 1] for name, value in context.items()}
        alone, logits = RowsReader.start(model, Prompts.of([prompt]), **own)
        expected = [logits, *(alone.read(token) for token in more[row : row + 1].split(1, dim=1))]
        for step, one in zip(found, expected, strict=True):
            torch.testing.assert_close(step[row : row + 1], one, rtol=1e-12, atol=1e-12 * float(one.abs().max()))


@given(variants(), st.data())
def test_rows_are_read_as_if_alone(variant: Variant, data: st.DataObject) -> None:
    lengths = [data.draw(st.integers(1, 14)) for _ in range(variant.batch)]
    torch.manual_seed(variant.seed)
    assert_reads_as_if_alone(variant.model().eval(), tokens_of(lengths), **context_of(variant))


@pytest.mark.parametrize("memory_start", ["empty", "zeros"])
@pytest.mark.parametrize("cls", [ParallelTransformer, TransformerXL])
def test_rows_of_baselines_are_read_as_if_alone(cls: Any, memory_start: str) -> None:
    assert_reads_as_if_alone(cls(**FIELDS, memory_start=memory_start).double().eval(), tokens_of([3, 11, 1, 8]))


def test_rows_of_the_authors_transformer_are_read_as_if_alone() -> None:
    model = AuthorsTransformer(**FIELDS, memory_start="zeros").double().eval()
    assert_reads_as_if_alone(model, tokens_of([3, 11, 1, 8]))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seq_len", [1, 3])
def test_rows_are_written_as_if_alone(seq_len: int, temperature: float) -> None:
    """With a generator for each row, tokens do not depend on the other rows."""
    model = FeedbackTransformer(**FIELDS | {"seq_len": seq_len}).double().eval()
    prompts = tokens_of([3, 11, 1, 7])
    options: dict[str, Any] = {"max_new_tokens": 30, "temperature": temperature, "repetition_penalty": 1.2}
    found = torch.stack(list(generate(model, prompts, **options, generator=generators(0, 1, 2, 3))), 1)
    for row, prompt in enumerate(prompts):
        alone = torch.cat(list(generate(model, [prompt], **options, generator=generators(row))))
        assert torch.equal(found[row], alone)


def test_a_mask_says_what_is_padding() -> None:
    model = FeedbackTransformer(**FIELDS).double().eval()
    prompts = tokens_of([2, 4])
    padded = torch.stack([torch.cat([prompts[0][:1], torch.tensor([9, 9]), prompts[0][1:]]), prompts[1]])
    mask = torch.tensor([[True, False, False, True], [True] * 4])
    options: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0}
    found = torch.stack(list(generate(model, padded, prompt_mask=mask, **options)))
    assert torch.equal(found, torch.stack(list(generate(model, prompts, **options))))


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (None, {}, "prompt is missing"),
        (torch.zeros(3, dtype=torch.long), {}, r"prompt is \(3,\); it must be \(batch >= 1, n >= 1\)"),
        ([], {}, r"prompt is a list of \[\]"),
        ("The", {}, r"prompt is a str; it must be a tensor of tokens \(batch >= 1, n >= 1\), or a list of tensors"),
        ([1, 2], {}, "prompt is a list of int; it must be a tensor"),
        ([torch.tensor([1]), [2]], {}, "prompt is a list of Tensor and list; it must be a tensor"),
        ([torch.zeros(1, 2)], {}, r"prompt is a list of \[\(1, 2\)\]"),
        ([torch.tensor([1]), torch.tensor([], dtype=torch.long)], {}, "prompt 1 has no tokens"),
        ([torch.tensor([1])], {"prompt_mask": torch.ones(1, 1).bool()}, "prompt_mask is given with a list"),
        (torch.zeros(1, 2).long(), {"prompt_mask": torch.ones(1, 3).bool()}, r"prompt_mask is torch.bool \(1, 3\)"),
        (torch.zeros(1, 2).long(), {"prompt_mask": torch.zeros(1, 2).bool()}, "prompt 0 has no tokens"),
        (torch.zeros(1, 2).long(), {"generator": generators(1, 2)}, "generator has 2 random generators for 1 rows"),
    ],
)
def test_what_is_no_prompt_is_named(prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(FeedbackTransformer(**FIELDS), prompt, max_new_tokens=3, **options)
