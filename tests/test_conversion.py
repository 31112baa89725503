"""The same function as feedback-transformer-pytorch 0.0.11, and its gradients, in float64."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import definition
from feedback_transformer_pytorch import FeedbackTransformer, InputError, from_reference
from feedback_transformer_pytorch.conversion import rename_reference
from reference import ReferenceUnavailable, load_reference


@pytest.fixture(scope="module")
def reference() -> Any:
    try:
        return load_reference()
    except ReferenceUnavailable as reason:
        pytest.skip(str(reason))


def pair(reference: Any, **options: Any) -> tuple[Any, FeedbackTransformer]:
    """A 0.0.11 model with no parameter left at 0 or 1, and ours made of its state dict."""
    theirs = reference(num_tokens=13, dim=12, depth=3, heads=2, dim_head=4, **options).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    kept = {name: options[name] for name in ("seq_len", "mem_len", "keep_last_hidden") if name in options}
    return theirs, from_reference(theirs.state_dict(), heads=2, **kept)


# 0.0.11 crashes where a lone token of a longer segment has no memory, so T = 1 goes with seq_len = 1 or a memory.
@pytest.mark.parametrize("keep_last_hidden", [False, True])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("mem_len", [3, 6, 40])
@pytest.mark.parametrize("seq_len", [1, 2, 3, 8])
def test_logits_memory_and_gradients_agree(
    reference: Any, seq_len: int, mem_len: int, carried: bool, keep_last_hidden: bool
) -> None:
    theirs, ours = pair(reference, seq_len=seq_len, mem_len=mem_len, keep_last_hidden=keep_last_hidden)
    for time in (2 * seq_len, 16, 17):  # whole segments only, and a short last one
        x, first = torch.randint(0, 13, (2, time)), torch.randint(0, 13, (2, 2 * seq_len)) if carried else None
        weight = torch.randn(2, time, 13, dtype=torch.float64)
        expected = definition(ours, partial(run, ours, first, x, weight))
        found = run(theirs, first, x, weight)
        grads = {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False) if p.grad is not None}
        found |= {f"grad {name}": grad for name, grad in rename_reference(grads).items()}
        zero = {name: torch.zeros_like(value) for name, value in expected.values.items() if name.startswith("grad")}
        expected.assert_agrees(zero | found)


def run(model: Any, first: Tensor | None, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Output and memory, and the gradients of a sum of them; behind a memory of the text `first`."""
    model.zero_grad()
    memory = None if first is None else model(first, return_memory=True)[1]
    out, left = model(x, memory=memory, return_memory=True)
    ((out * weight).sum() + left.keys.sin().sum() + left.values.cos().sum()).backward()
    found = {"out": out, "keys": left.keys, "values": left.values}
    if isinstance(model, FeedbackTransformer):
        found |= {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found


@pytest.mark.parametrize("seq_len", [2, 3])
def test_a_lone_last_token_with_a_memory(reference: Any, seq_len: int) -> None:
    theirs, ours = pair(reference, seq_len=seq_len, mem_len=4)
    x = torch.randint(0, 13, (2, seq_len + 1))
    definition(ours, lambda: {"out": ours(x)}).assert_agrees({"out": theirs(x)})


def test_its_page_first_example_gives_its_numbers(reference: Any) -> None:
    theirs = reference(num_tokens=200, dim=64, depth=2, seq_len=2, mem_len=16, dim_head=16, heads=4).double().eval()
    x = torch.randint(0, 200, (2, 64))
    ours = from_reference(theirs.state_dict(), seq_len=2, mem_len=16, heads=4)
    definition(ours, lambda: {"out": ours(x)}).assert_agrees({"out": theirs(x)})


def test_load_state_dict_of_0_0_11_hints_at_from_reference(reference: Any) -> None:
    theirs, ours = pair(reference, seq_len=2, mem_len=4)
    with pytest.raises(InputError, match="from_reference"):
        ours.load_state_dict(theirs.state_dict())


def test_what_is_no_state_dict_of_0_0_11_is_refused(reference: Any) -> None:
    theirs, ours = pair(reference, seq_len=2, mem_len=4)
    state = theirs.state_dict()
    with pytest.raises(InputError, match=r"'decoder\.\S+' is not a parameter of .* 0\.0\.11"):
        from_reference(ours.decoder.state_dict(prefix="decoder."), seq_len=2, mem_len=4, heads=2)
    with pytest.raises(InputError, match="heads is 4, .* heads=2"):
        from_reference(state, seq_len=2, mem_len=4, heads=4)
    with pytest.raises(InputError, match="not whole: .*to_q"):
        from_reference({k: v for k, v in state.items() if "to_q" not in k}, seq_len=2, mem_len=4, heads=2)
    with pytest.raises(InputError, match="holds no .*token_emb"):
        from_reference({k: v for k, v in state.items() if "token_emb" not in k}, seq_len=2, mem_len=4, heads=2)
