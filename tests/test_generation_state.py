"""States saved to a file: what goes on from one is bit for bit what was never interrupted."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from feedback_transformer_pytorch import (
    AuthorsTransformer,
    FeedbackTransformer,
    InputError,
    ParallelTransformer,
    TransformerXL,
    generate,
    load_state,
    save_state,
)
from feedback_transformer_pytorch.generation import Model
from feedback_transformer_pytorch.generation.state_file import fingerprint
from feedback_transformer_pytorch.recurrence import incremental
from feedback_transformer_pytorch.recurrence.native import applicability
from random_variants import Variant, variants
from test_generation_recomputed import FIELDS, context_of

MODELS: list[tuple[Any, dict[str, Any]]] = [
    (FeedbackTransformer, {"carry": carry, "seq_len": seq_len})
    for carry, seq_len in itertools.product(["keys", "state"], [1, 4])
]
MODELS += [(ParallelTransformer, {}), (TransformerXL, {}), (AuthorsTransformer, {"memory_start": "zeros"})]
SEEDED: dict[str, Any] = {"temperature": 1.5, "repetition_penalty": 1.1}


def assert_goes_on_bit_for_bit(model: Model, prompt: Any, cuts: list[int], path: Path, **context: Any) -> None:
    """Compares tokens, and then the files of both states."""
    whole = generate(model, prompt, max_new_tokens=sum(cuts), **SEEDED, **context, generator=seeded())
    expected = torch.stack(list(whole))
    found, state = [], None
    for cut in cuts:
        start: dict[str, Any] = {"prompt": prompt, "generator": seeded()} if state is None else {"state": state}
        part = generate(model, max_new_tokens=cut, **SEEDED, **context, **start)
        found += list(part)
        save_state(path, part.state, model)
        state = load_state(path, model)
    assert torch.equal(torch.stack(found), expected)
    other = path.with_name("other")
    save_state(other, whole.state, model)
    first, second = load_file(path), load_file(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows", ["one length", "different lengths"])
@pytest.mark.parametrize(("cls", "fields"), MODELS, ids=str)
def test_models_go_on_bit_for_bit(
    cls: Any, fields: dict[str, Any], rows: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past moves of the buffer."""
    monkeypatch.setattr(incremental, "TOKENS_AT_ONCE", 40)
    model = cls(**FIELDS | {"dim": 24, "dim_head": 12, "num_tokens": 40, "mem_len": 37} | fields).to(dtype).eval()
    one_length = torch.randint(0, 40, (3, 9))
    prompt: Any = one_length if rows == "one length" else [row[: 3 * n + 2] for n, row in enumerate(one_length)]
    assert_goes_on_bit_for_bit(model, prompt, [1, 30, 49, 60], tmp_path / "state")


@pytest.mark.parametrize("carry", ["keys", "state"])
def test_models_go_on_bit_for_bit_in_bf16(carry: str, tmp_path: Path) -> None:
    with torch.autocast("cpu"):
        assert_goes_on_bit_for_bit(small(carry=carry), torch.tensor([[1, 2, 3]]), [3, 9, 20], tmp_path / "state")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(variants(), st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(1, 5), st.booleans())
def test_variants_go_on_bit_for_bit(
    tmp_path: Path, variant: Variant, cuts: list[int], tokens_at_once: int, is_compiled: bool
) -> None:
    model = variant.model().eval()
    with (
        mock.patch.object(incremental, "TOKENS_AT_ONCE", tokens_at_once),
        mock.patch.object(applicability, "LEAST_SEGMENTS", 1 if is_compiled else 1000),
    ):
        assert_goes_on_bit_for_bit(model, variant.tokens(), cuts, tmp_path / "state", **context_of(variant))


def small(**fields: Any) -> FeedbackTransformer:
    return FeedbackTransformer(**FIELDS | {"seq_len": 4} | fields).eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[FeedbackTransformer, Path]:
    model = small()
    going = generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=20, generator=seeded())
    list(going)
    save_state(tmp_path / "state", going.state, model)
    return model, tmp_path / "state"


def test_a_prompt_behind_a_state_is_read_after_it(saved: tuple[FeedbackTransformer, Path]) -> None:
    model, path = saved
    first = torch.cat(list(generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=20, generator=seeded())))
    found = list(
        generate(model, torch.tensor([[7, 8]]), max_new_tokens=9, temperature=0, state=load_state(path, model))
    )
    text = torch.cat([torch.tensor([1, 2, 3]), first, torch.tensor([7, 8])])[None]
    expected = list(generate(model, text, max_new_tokens=9, temperature=0))
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_each_row_keeps_its_generator(tmp_path: Path) -> None:
    model, prompt = small(), torch.tensor([[1, 2], [3, 4]])
    whole = generate(model, prompt, max_new_tokens=12, generator=[seeded(), seeded()])
    expected = torch.stack(list(whole))
    part = generate(model, prompt, max_new_tokens=5, generator=[seeded(), seeded()])
    found = list(part)
    save_state(tmp_path / "state", part.state, model)
    found += list(generate(model, max_new_tokens=7, state=load_state(tmp_path / "state", model)))
    assert torch.equal(torch.stack(found), expected)


def test_the_size_of_a_file_is_constant(tmp_path: Path) -> None:
    model = small()
    going = generate(model, torch.tensor([[1, 2, 3, 4]]), max_new_tokens=400)
    sizes = set()
    for number, _ in enumerate(going):
        if number > 200 and number % 4 == 0:
            save_state(tmp_path / "state", going.state, model)
            sizes.add((tmp_path / "state").stat().st_size)
    assert len(sizes) == 1


def test_a_fingerprint_is_of_class_configuration_and_weights() -> None:
    torch.manual_seed(1)
    model = small()
    torch.manual_seed(1)
    same, other = small(), small(mem_len=7)
    other.load_state_dict(model.state_dict())
    assert fingerprint(model) == fingerprint(same)
    assert fingerprint(model) != fingerprint(other)
    before = fingerprint(model)
    assert fingerprint(model.double()) != before
    with torch.no_grad():
        same.layer_weight[0] += 1
    assert fingerprint(same) != before


def test_what_is_no_state_of_the_model_is_named(saved: tuple[FeedbackTransformer, Path], tmp_path: Path) -> None:
    model, path = saved
    with torch.no_grad():
        model.layer_weight[0] += 1
    with pytest.raises(
        InputError, match=r"state belongs to another model: its fingerprint is \w{12}, that of this model"
    ):
        load_state(path, model)
    with pytest.raises(InputError, match=r"nowhere cannot be read: .*; give a file"):
        load_state(tmp_path / "nowhere", model)
    save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(InputError, match="weights is not a state of a generated text"):
        load_state(tmp_path / "weights", model)


def test_damage_is_named(saved: tuple[FeedbackTransformer, Path]) -> None:
    """Wherever a byte changes, or the file ends."""
    model, path = saved
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError):
            load_state(path, model)
        path.write_bytes(whole[:place])
        with pytest.raises(InputError, match="is damaged"):
            load_state(path, model)
    path.write_bytes(whole.replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(InputError, match="is of version '2' of its format, and this package reads version '1'"):
        load_state(path, model)


def test_states_that_there_are_not_are_named() -> None:
    model = small()
    with pytest.raises(InputError, match="no token was drawn yet"):
        _ = generate(model, torch.tensor([[1]]), max_new_tokens=3).state
    with torch.no_grad():
        model.to_logits.bias[7] = 100.0
    going = generate(model, torch.tensor([[1, 1], [1, 7]]), max_new_tokens=3, stop=[[7]])
    list(going)
    assert going.state.lengths.tolist() == [3, 3]
    model.to_logits.bias.data[7] = 0
    going = generate(model, torch.tensor([[1, 1], [2, 3]]), max_new_tokens=50, temperature=5.0, end_of_text=7)
    list(going)
    with pytest.raises(InputError, match="a row ended while others went on"):
        _ = going.state


def test_what_does_not_go_with_a_state_is_named(saved: tuple[FeedbackTransformer, Path]) -> None:
    model, path = saved
    state = load_state(path, model)
    with pytest.raises(InputError, match=r"prompts have \[1, 1\] tokens; behind a state of 1 rows"):
        generate(model, torch.zeros(2, 1).long(), max_new_tokens=3, state=state)
    memory = model(torch.zeros(1, 4).long(), return_memory=True)[1]
    with pytest.raises(InputError, match="prompt_mask is given without a prompt"):
        generate(model, max_new_tokens=3, state=state, prompt_mask=torch.ones(1, 1, dtype=torch.bool))
    other = dataclasses.replace(state, random=torch.zeros(1, 16, dtype=torch.uint8))  # of a GPU
    with pytest.raises(InputError, match="random numbers are of another kind of device than cpu; give a generator"):
        generate(model, max_new_tokens=3, state=other)
    list(generate(model, max_new_tokens=3, state=other, generator=torch.Generator()))
    with pytest.raises(InputError, match="memory is given with a state"):
        generate(model, max_new_tokens=3, state=state, memory=memory)
