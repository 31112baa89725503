"""The fused walk is the definition: outputs, memory and every gradient, in float64, over all shapes."""

import copy
import dataclasses
import warnings
from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NUM_TOKENS, POSITIONS, Case, cases, definition
from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer, Memory
from feedback_transformer_pytorch.recurrence import WalkRequest, fused
from feedback_transformer_pytorch.recurrence.layout.buffer import MemoryBuffer
from feedback_transformer_pytorch.recurrence.ops import products
from feedback_transformer_pytorch.recurrence.ops.attention import AttentionOps

CONFIG = FeedbackConfig(num_tokens=NUM_TOKENS, dim=6, depth=2, mem_len=4, seq_len=2, heads=2, dim_head=3)
CASE = Case(CONFIG, batch=2, time=11, memory_slots=3, seed=0)

pytestmark = pytest.mark.usefixtures("poisoned_buffers", "steps")


def run(model: FeedbackTransformer, x: Tensor, memory: Memory | None, **arguments: Any) -> dict[str, Tensor]:
    """Outputs, and the gradients of a sum of all of them with random weights."""
    model.zero_grad()
    if memory is not None:
        memory = Memory(memory.keys.clone().requires_grad_(), memory.values.clone().requires_grad_(), memory.lengths)
    logits, left = model(x, memory, return_memory=True, **arguments)
    weight = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ((logits * weight.to(logits.dtype)).sum() + left.keys.sin().sum() + left.values.cos().sum()).backward()
    found = {"logits": logits, "keys": left.keys, "values": left.values}
    found |= {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    if memory is not None:
        assert memory.keys.grad is not None
        assert memory.values.grad is not None
        found |= {"grad keys": memory.keys.grad, "grad values": memory.values.grad}
    return {name: tensor.detach() for name, tensor in found.items()}


def compare(model: FeedbackTransformer, x: Tensor, memory: Memory | None, **arguments: Any) -> None:
    """The fused walk against the definition, with the same dropout masks."""

    def evaluate() -> dict[str, Tensor]:
        torch.manual_seed(7)
        return run(model, x, memory, **arguments)

    model.implementation = "fused"
    found = evaluate()
    definition(model, evaluate).assert_agrees(found)


def test_biases_do_not_add_up_over_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the memory fills, every window has another bias; kept, they would grow with the memory's square."""
    made: list[Any] = []

    def note(cls: type) -> None:
        plain = cls.__init__

        def noted(self: Any, *arguments: Any) -> None:
            plain(self, *arguments)
            made.append(self)

        monkeypatch.setattr(cls, "__init__", noted)

    note(MemoryBuffer)
    note(AttentionOps)
    for position in POSITIONS:
        made.clear()
        config = dataclasses.replace(CONFIG, mem_len=60, position=position)
        run(Case(config, 2, 61, 0, 0).model(implementation="fused"), torch.randint(0, NUM_TOKENS, (2, 61)), None)
        for each in made:
            kept = [value for value in vars(each).values() if isinstance(value, dict)]
            assert kept
            assert all(len(by_length) <= 2 for by_length in kept)  # lengths: of whole segments, and of the last
        assert {type(each) for each in made} == {MemoryBuffer, AttentionOps}


@settings(max_examples=250)
@given(cases(), st.booleans())
def test_outputs_memory_and_all_gradients(case: Case, recompute: bool) -> None:
    compare(case.model(recompute=recompute), case.tokens(), case.memory())


@settings(max_examples=80)
@given(cases(), st.floats(0, 1), st.floats(0, 0.5), st.booleans())
def test_mask_and_reset(case: Case, real: float, resets: float, recompute: bool) -> None:
    arguments = {"mask": case.flags(real), "reset": case.flags(resets, salt=4)}
    compare(case.model(recompute=recompute), case.tokens(), case.memory(), **arguments)


@settings(max_examples=60)
@given(cases(), st.sampled_from([(0.3, 0.0), (0.0, 0.3), (0.4, 0.2)]), st.booleans())
def test_dropout_has_the_same_masks_in_both_directions(
    case: Case, dropout: tuple[float, float], recompute: bool
) -> None:
    config = dataclasses.replace(case.config, attn_dropout=dropout[0], ff_dropout=dropout[1])
    case = dataclasses.replace(case, config=config)
    compare(case.model(recompute=recompute), case.tokens(), case.memory())


def test_a_batch_without_rows() -> None:
    model = CASE.model(implementation="fused")
    states, memory = model.decoder(torch.zeros(0, 7, 6, dtype=torch.float64), return_memory=True)
    assert (states.shape, len(memory.keys)) == ((0, 7, 6), 0)
    states, _ = model.decoder(states, memory, return_memory=True, mask=torch.ones(0, 7, dtype=torch.bool))
    assert states.shape == (0, 7, 6)


def test_the_memory_that_comes_out_can_be_changed_in_place() -> None:
    _, memory = CASE.model(implementation="fused")(CASE.tokens()[:, :2], return_memory=True)
    memory.values[:, 0] = 0
    assert memory.values.requires_grad


STEPS_ASIDE = {
    "hooked": lambda stack: stack.layers[0].attention.to_q.register_forward_hook(lambda *_: None),
    "backward hook": lambda stack: stack.layers[0].feedforward.register_full_backward_hook(lambda *_: None),
    "parametrized": lambda stack: nn.utils.parametrizations.weight_norm(stack.layers[1].feedforward.to_out),
    "adapted": lambda stack: setattr(stack.layers[1].attention, "to_q", Adapted(stack.layers[1].attention.to_q)),
}


class Adapted(nn.Module):
    """What a LoRA library puts in a Linear's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.low = base, nn.Linear(base.in_features, base.out_features, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.low(x)


@pytest.mark.parametrize("how", STEPS_ASIDE)
def test_steps_aside_says_why_once_and_is_right(how: str) -> None:
    model = CASE.model(implementation="fused")
    STEPS_ASIDE[how](model.decoder.stack)
    with pytest.warns(UserWarning, match="falls back"):
        found = run(model, CASE.tokens(), CASE.memory())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(CASE.tokens())
    model.implementation = "stepwise"
    expected = run(model, CASE.tokens(), CASE.memory())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback_transformer_pytorch.recurrence.applicability._warned", set())


@pytest.mark.filterwarnings("ignore")
def test_inside_torch_compile() -> None:
    model = CASE.model(implementation="fused")
    logits = torch.compile(model, backend="eager")(CASE.tokens(), CASE.memory())
    definition(model, lambda: {"logits": model(CASE.tokens(), CASE.memory())}).assert_agrees({"logits": logits})


def relative_errors(
    config: FeedbackConfig,
    implementation: Any,
    *,
    batch: int,
    time: int,
    autocast: bool = False,
    recompute: bool = False,
) -> dict[str, float]:
    """The errors of every result in float32, or in bf16 under autocast, against the definition in float64.

    Each is the root mean square over four models, as some gradients have few numbers, whose errors vary by chance.
    """
    squares: dict[str, float] = defaultdict(float)
    for seed in range(4):
        torch.manual_seed(seed)
        model = FeedbackTransformer.from_config(config, implementation=implementation, recompute=recompute)
        x = torch.randint(0, config.num_tokens, (batch, time))
        exact = copy.deepcopy(model).double()
        exact.implementation = "stepwise"
        truth = run(exact, x, None)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = run(model, x, None)
        for name, value in truth.items():
            squares[name] += float(((found[name] - value).norm() / value.norm()) ** 2) / 4
    return {name: total**0.5 for name, total in squares.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_200_updates_give_the_same_losses(dtype: torch.dtype) -> None:
    losses = {}
    for implementation in ("stepwise", "fused"):
        model = Case(CONFIG, 4, 12, 0, 5).model(implementation=implementation).to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        generator, memory, curve = torch.Generator().manual_seed(0), None, []
        for _ in range(200):
            text = torch.randint(0, NUM_TOKENS, (4, 6), generator=generator).repeat(1, 3)[:, :13]
            logits, memory = model(text[:, :-1], memory, return_memory=True)
            memory = memory.detach()
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses[implementation] = torch.tensor(curve, dtype=torch.float64)
    assert losses["fused"][-1] < 0.9 * losses["fused"][0]
    if dtype == torch.float64:
        torch.testing.assert_close(losses["fused"], losses["stepwise"], rtol=0, atol=1e-6)
    else:  # rounding grows along the way; the curve stays the same
        ends = [curve[-50:].mean() for curve in losses.values()]
        torch.testing.assert_close(ends[0], ends[1], rtol=0.01, atol=0)


def test_auto_is_the_fused_walk_where_it_applies() -> None:
    model = CASE.model()
    embedded = model.token_emb(CASE.tokens())
    memory = CASE.memory()
    assert memory is not None
    states = fused(model.decoder.stack, WalkRequest(embedded, memory.keys, memory.values)).states
    assert torch.equal(model.decoder.norm(states), model.decoder(embedded, memory))


@pytest.mark.parametrize("packs", [True, False])
def test_large_weights_are_packed_where_that_is_to_be_had(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, with oneMKL's private operator and without it; a last segment of other rows included."""
    torch.use_deterministic_algorithms(False)
    if packs and products._mkl_linear is None:
        pytest.skip("this build of torch has no packed products")
    monkeypatch.setattr(products, "PACK_FROM", 0 if packs else 2**60)
    monkeypatch.setattr(products, "ROWS_PER_INPUT", 0)
    monkeypatch.setattr(products, "STEPS_PER_TRANSPOSE", 0)
    model, memory = CASE.model(), CASE.memory()
    assert memory is not None
    truth = definition(model, lambda: run(model, CASE.tokens(), memory))
    narrow = copy.deepcopy(model).float()
    found = run(narrow, CASE.tokens(), Memory(memory.keys.float(), memory.values.float()))
    truth.assert_agrees(found, eps=torch.finfo(torch.float32).eps)
