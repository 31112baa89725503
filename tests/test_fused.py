"""The fused walk is the definition: outputs, memory and every gradient, in float64, over all shapes."""

import copy
import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NUM_TOKENS, POSITIONS, Case, cases, definition
from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer, Memory
from feedback_transformer_pytorch.recurrence import WalkRequest, fused
from feedback_transformer_pytorch.recurrence.layout import plan
from feedback_transformer_pytorch.recurrence.layout.buffer import MemoryBuffer
from feedback_transformer_pytorch.recurrence.native import applicability
from feedback_transformer_pytorch.recurrence.ops import products
from feedback_transformer_pytorch.recurrence.ops.attention import AttentionOps

CONFIG = FeedbackConfig(num_tokens=NUM_TOKENS, dim=6, depth=2, mem_len=4, seq_len=2, heads=2, dim_head=3)
CASE = Case(CONFIG, batch=2, time=11, memory_slots=3, seed=0)


@pytest.fixture(autouse=True)
def poisoned_buffers() -> Iterator[None]:
    """What `torch.empty` leaves uninitialised is NaN here, so that nothing unwritten goes unseen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(autouse=True, params=["torch", "native"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What walks the steps; and small tests must have several blocks and chunks too."""
    monkeypatch.setattr(plan, "BLOCK_QUERIES", 4)
    monkeypatch.setattr(plan, "CHUNK_ROWS", 20)
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)
    if request.param == "torch":
        monkeypatch.setattr(applicability, "library", lambda: None)
    elif applicability.library() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


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


@pytest.mark.parametrize("seq_len", [1, 3])
@pytest.mark.parametrize("position", POSITIONS)
def test_gradcheck(seq_len: int, position: Any) -> None:
    """Finite differences against the function itself, for every differentiable input."""
    config = dataclasses.replace(
        CONFIG, dim=4, depth=2, mem_len=2, seq_len=seq_len, heads=1, kv_heads=1, position=position
    )
    stack = Case(config, 1, 4, 0, 0).model().decoder.stack
    names = [name for name, _ in stack.named_parameters()]
    x = torch.randn(1, 4, 4, dtype=torch.float64)
    keys, values = torch.randn(2, 1, 2, config.kv_dim, dtype=torch.float64)

    def function(x: Tensor, keys: Tensor, values: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        wrapped = Wrapped(stack)
        named = {f"stack.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(wrapped, named, (x, Memory(keys, values)))

    inputs = [t.detach().clone().requires_grad_() for t in (x, keys, values, *stack.parameters())]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=False)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


class Wrapped(nn.Module):
    def __init__(self, stack: Any) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor, memory: Memory) -> tuple[Tensor, ...]:
        return fused(self.stack, WalkRequest(x, memory.keys, memory.values))[:3]


def test_a_second_backward_through_the_same_graph_gives_the_same() -> None:
    model = CASE.model(implementation="fused")
    loss = model(CASE.tokens(), CASE.memory()).square().sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_double_backward_steps_aside_and_replays_dropout() -> None:
    config = dataclasses.replace(CONFIG, attn_dropout=0.3, ff_dropout=0.3)
    model = Case(config, 2, 5, 0, 0).model(implementation="fused")
    x, memory = CASE.tokens()[:, :5], CASE.memory()

    def evaluate() -> dict[str, Tensor]:
        torch.manual_seed(3)
        loss = model(x, memory).square().sum()
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        assert isinstance(penalty, Tensor)
        return gradients(penalty, model)

    definition(model, evaluate).assert_agrees(evaluate())


def test_gradients_that_have_gradients_count_each_path_once() -> None:
    """The carried memory depends on the parameters that the walk reads too."""
    model, x = CASE.model(implementation="fused"), CASE.tokens()

    def evaluate(create_graph: bool) -> dict[str, Tensor]:
        _, memory = model(x, return_memory=True)
        loss = model(x, memory).square().sum()
        found = torch.autograd.grad(loss, list(model.parameters()), create_graph=create_graph)
        return {f"grad {name}": grad for (name, _), grad in zip(model.named_parameters(), found, strict=True)}

    expected = definition(model, lambda: evaluate(False))
    expected.assert_agrees(evaluate(True))


def test_gradients_that_have_gradients_are_of_the_forward_pass() -> None:
    """Of its mode, and only of outputs that depend on what needs a gradient."""
    config = dataclasses.replace(CONFIG, attn_dropout=0.3, ff_dropout=0.3, stored=0)
    model, x = dataclasses.replace(CASE, config=config).model(implementation="fused"), CASE.tokens()
    model.requires_grad_(False)
    model.decoder.stack.layers.requires_grad_(True)
    names, parameters = zip(*model.decoder.stack.layers.named_parameters(), strict=True)

    def evaluate(create_graph: bool) -> dict[str, Tensor]:
        torch.manual_seed(3)
        logits, memory = model.train()(x, return_memory=True)
        loss = logits.square().sum() + memory.keys.sum()
        model.eval()
        return dict(zip(names, torch.autograd.grad(loss, parameters, create_graph=create_graph), strict=True))

    found = evaluate(True)
    definition(model, lambda: evaluate(False)).assert_agrees(found)


def test_calls_in_two_threads_leave_the_parameters_alone() -> None:
    model, x = CASE.model(implementation="fused").eval(), CASE.tokens()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        expected = model(x)

    def call() -> bool:
        with torch.no_grad():
            return all(torch.equal(model(x), expected) for _ in range(20))

    with ThreadPoolExecutor(2) as pool:
        assert all(future.result() for future in [pool.submit(call) for _ in range(2)])
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


def test_a_batch_without_rows() -> None:
    model = CASE.model(implementation="fused")
    states, memory = model.decoder(torch.zeros(0, 7, 6, dtype=torch.float64), return_memory=True)
    assert (states.shape, len(memory.keys)) == ((0, 7, 6), 0)


def test_the_memory_that_comes_out_can_be_changed_in_place() -> None:
    _, memory = CASE.model(implementation="fused")(CASE.tokens()[:, :2], return_memory=True)
    memory.values[:, 0] = 0
    assert memory.values.requires_grad


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
    return {f"grad {name}": grad for name, grad in found if grad is not None}


def test_frozen_parameters_get_no_gradient_and_the_others_do() -> None:
    model = CASE.model()
    frozen = [name for name, _ in model.named_parameters() if "feedforward" in name or "to_q" in name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    compare(model, CASE.tokens(), CASE.memory())
    assert all(p.grad is None for name, p in model.named_parameters() if name in frozen)


def test_no_grad_keeps_nothing_and_gives_the_same() -> None:
    model = CASE.model(implementation="fused")
    kept = model(CASE.tokens(), CASE.memory())
    with torch.no_grad():
        free = model(CASE.tokens(), CASE.memory())
    assert free.grad_fn is None
    # Their buffers may lie in memory in another way, which a matrix library may see in the last digit.
    expected = definition(model, lambda: {"logits": model(CASE.tokens(), CASE.memory())})
    expected.assert_agrees({"logits": free})
    expected.assert_agrees({"logits": kept})


@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_a_checkpoint(reentrant: bool) -> None:
    model, x = CASE.model(implementation="fused"), CASE.tokens()
    embedded = model.token_emb(x).detach().requires_grad_()

    def evaluate(decoder: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        embedded.grad = None
        decoder(embedded).square().sum().backward()
        inputs = {"embedded": embedded, **dict(model.decoder.named_parameters())}
        return {f"grad {name}": it.grad for name, it in inputs.items() if it.grad is not None}

    checkpointed = partial(torch.utils.checkpoint.checkpoint, model.decoder, use_reentrant=reentrant)
    definition(model, lambda: evaluate(model.decoder)).assert_agrees(evaluate(checkpointed))


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


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_forward_mode_steps_aside() -> None:
    model, x = CASE.model(), CASE.tokens()
    embedded = model.token_emb(x).detach()
    tangent = torch.randn_like(embedded)
    results = []
    with torch.autograd.forward_ad.dual_level():
        for implementation in ("stepwise", "auto"):
            model.implementation = implementation
            dual = torch.autograd.forward_ad.make_dual(embedded, tangent)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                out = model.decoder(dual)
            results.append(torch.autograd.forward_ad.unpack_dual(out).tangent)
    assert torch.equal(*results)


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


def test_two_processes_average_the_gradients_of_their_rows(tmp_path: Path) -> None:
    """Inside DistributedDataParallel: two gloo ranks with half the rows each, against one process with all."""
    model, x = CASE.model(implementation="fused"), CASE.tokens()
    torch.multiprocessing.spawn(_rank, (2, tmp_path), nprocs=2)
    expected = definition(model, lambda: gradients(model(x).square().mean(), model))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(found) == set(expected.values)
        expected.assert_agrees(found)


def _rank(rank: int, world_size: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    model = nn.parallel.DistributedDataParallel(CASE.model(implementation="fused"))
    model(CASE.tokens()[rank : rank + 1]).square().mean().backward()
    torch.save({f"grad {name}": p.grad for name, p in model.module.named_parameters()}, folder / f"{rank}.pt")
    # Whoever drops the group last waits for its thread; DistributedDataParallel would do so holding a lock it may need.
    del model
    torch.distributed.destroy_process_group()
