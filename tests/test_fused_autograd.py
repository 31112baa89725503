"""The fused walk inside autograd: its gradients, gradients of gradients, and what surrounds a call."""

import dataclasses
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import POSITIONS, Case, definition
from feedback_transformer_pytorch import Memory
from feedback_transformer_pytorch.recurrence import WalkRequest, fused
from test_fused import CASE, CONFIG, compare

pytestmark = pytest.mark.usefixtures("poisoned_buffers", "steps")


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
