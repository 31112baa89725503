"""The same functions as feedback-transformer-pytorch 0.0.11 and the paper authors' code, and their gradients.

All are compared in float64. Numbers that the authors' code gave are read from the folder that the environment variable
FEEDBACK_GOLDENS names, or from `shared/goldens/official` beside the project. Where they are missing, tests are skipped.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from cases import definition
from feedback_transformer_pytorch import (
    AuthorsTransformer,
    FeedbackTransformer,
    InputError,
    from_official,
    from_reference,
)
from feedback_transformer_pytorch.conversion import rename_official, rename_reference
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


# 0.0.11 crashes where a single token of a longer segment has no memory, so T = 1 goes with seq_len = 1 or a memory.
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
def test_a_single_last_token_with_a_memory(reference: Any, seq_len: int) -> None:
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
    with pytest.raises(InputError, match=r"'stack\.\S+' is not a parameter of .* 0\.0\.11"):
        from_reference(ours.decoder.state_dict(), seq_len=2, mem_len=4, heads=2)
    with pytest.raises(InputError, match="heads is 4, .* heads=2"):
        from_reference(state, seq_len=2, mem_len=4, heads=4)
    with pytest.raises(InputError, match="not whole: .*to_q"):
        from_reference({k: v for k, v in state.items() if "to_q" not in k}, seq_len=2, mem_len=4, heads=2)
    with pytest.raises(InputError, match="holds no .*token_emb"):
        from_reference({k: v for k, v in state.items() if "token_emb" not in k}, seq_len=2, mem_len=4, heads=2)


# The authors' own numbers, and small ones from an independent script, which lie beside it.
GOLDENS = {
    "official": Path(os.environ.get("FEEDBACK_GOLDENS") or Path(__file__).parents[2] / "shared/goldens/official"),
    "independent": Path(__file__).parent / "goldens",
}
BLOCKS = range(4)
EXACT = {"rtol": 0.0, "atol": 1e-12}


class Golden:
    """What the authors' code gave: tokens, targets and log probabilities of consecutive blocks, and what led to them.

    Attributes:
        tensors: by name; "param." begins the names of parameters, "block3." those of the last block.
        hyperparameters: of their command line.
    """

    def __init__(self, origin: str, name: str) -> None:
        path = GOLDENS[origin] / f"{name}.safetensors"
        if not path.exists():
            pytest.skip(f"there is no {path}; FEEDBACK_GOLDENS names the folder")
        with safe_open(path, "pt") as file:
            self.hyperparameters: dict[str, str] = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def named(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def model(self) -> FeedbackTransformer | AuthorsTransformer:
        return from_official(self.named("param."), self.hyperparameters)

    def assert_blocks_agree(self, model: FeedbackTransformer | AuthorsTransformer) -> None:
        """Log probabilities and memory of all blocks, each a call, and the gradients of the last block's loss."""
        memory: Any = None
        for block in BLOCKS:
            expected = self.named(f"block{block}.")
            memory = None if memory is None else memory.detach()
            logits, memory = model(expected["tokens"], memory, return_memory=True)
            found = logits.log_softmax(-1)
            torch.testing.assert_close(found, expected["log_probs"], **EXACT)
            if isinstance(model, FeedbackTransformer):
                torch.testing.assert_close(memory.states.transpose(0, 1), expected["memory_hidden"], **EXACT)
        loss = F.nll_loss(found.flatten(0, 1), expected["targets"].flatten())
        torch.testing.assert_close(loss, expected["loss"].squeeze(), **EXACT)
        loss.backward()
        gradients = rename_official(
            self.named(f"block{BLOCKS[-1]}.grad."), model.config, feedback=isinstance(model, FeedbackTransformer)
        )
        assert gradients.keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                parameter.grad, gradients[name], **EXACT, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("implementation", ["stepwise", "fused"])
@pytest.mark.parametrize("name", ["prenorm", "prenorm_sharedkv", "prenorm_span", "postnorm", "postnorm_sharedkv"])
@pytest.mark.parametrize("origin", GOLDENS)
def test_the_authors_feedback_model(origin: str, name: str, implementation: Any) -> None:
    golden = Golden(origin, name)
    model = golden.model()
    assert isinstance(model, FeedbackTransformer)
    model.implementation = implementation
    golden.assert_blocks_agree(model)


@pytest.mark.parametrize("name", ["transformer_prenorm", "transformer_postnorm"])
@pytest.mark.parametrize("origin", GOLDENS)
def test_the_authors_transformer(origin: str, name: str) -> None:
    golden = Golden(origin, name)
    model = golden.model()
    assert isinstance(model, AuthorsTransformer)
    golden.assert_blocks_agree(model)


HYPERPARAMETERS = {
    "feedback": "True",
    "pre_norm": "True",
    "share_proj_kv": "False",
    "vocab_sz": "7",
    "hid_sz": "6",
    "nlayers": "2",
    "attn_lim": "3",
    "nheads": "2",
    "head_dim": "3",
    "inner_hid_sz": "5",
    "dropout": "0.0",
    "adapt_span": "False",
}


def transformer_state() -> dict[str, Tensor]:
    """A state dict of the authors' Transformer, without numbers of theirs."""
    layer = {
        "norm1.weight": (6,),
        "norm1.bias": (6,),
        "attn.proj_query.weight": (6, 6),
        "attn.proj_key.weight": (6, 6),
        "attn.proj_val.weight": (6, 6),
        "attn.proj_out.weight": (6, 6),
        "attn.attn.key_pe": (1, 3, 3),
        "norm2.weight": (6,),
        "norm2.bias": (6,),
        "ff.fc1.weight": (5, 6),
        "ff.fc1.bias": (5,),
        "ff.fc2.weight": (6, 5),
        "ff.fc2.bias": (6,),
    }
    shapes = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    shapes |= {"in_emb.weight": (7, 6), "out_norm.weight": (6,), "out_norm.bias": (6,)}
    shapes |= {"out.out_emb.weight": (7, 6), "out.out_emb.bias": (7,)}
    state, position = {name: torch.randn(shape) for name, shape in shapes.items()}, torch.randn(1, 3, 3)
    return state | {name: position for name in state if name.endswith("key_pe")}  # all layers have the same one


def test_the_transformer_of_a_state_dict_has_its_tensors_and_precision() -> None:
    """Its key/value projections are per layer, whatever `share_proj_kv` says."""
    state = transformer_state()
    model = from_official(state, HYPERPARAMETERS | {"feedback": "False", "share_proj_kv": "True"})
    assert isinstance(model, AuthorsTransformer)
    assert model.token_emb.weight.dtype == torch.float32
    keys, values = model.layers[1].to_kv.weight.chunk(2)
    assert torch.equal(keys, state["layers.1.attn.proj_key.weight"])
    assert torch.equal(values, state["layers.1.attn.proj_val.weight"])
    newest_first = state["layers.0.attn.attn.key_pe"][0].t().flip(0)
    assert torch.equal(model.position.vectors.weight[1:], newest_first)


def test_what_the_authors_program_saves_is_taken_as_it_is() -> None:
    """All names begin with "module.", and its options are values, without the size of the vocabulary."""
    state, given = transformer_state(), HYPERPARAMETERS | {"feedback": "False"}
    options = {"feedback": False, "pre_norm": True, "share_proj_kv": False, "adapt_span": False, "expire_span": False}
    options |= {"hid_sz": 6, "nlayers": 2, "attn_lim": 3, "nheads": 2, "head_dim": 0, "inner_hid_sz": 5, "dropout": 0.0}
    model = from_official({f"module.{name}": tensor for name, tensor in state.items()}, options)
    assert model.config == from_official(state, given).config
    assert torch.equal(model.token_emb.weight, state["in_emb.weight"])


def test_layers_of_their_own_are_not_taken_for_shared_ones() -> None:
    state = transformer_state() | {"single_memory_attn_params": torch.randn(1, 3)}
    with pytest.raises(InputError, match=r"'layers.1.\S+' is not the same .* share_proj_kv"):
        from_official(state, HYPERPARAMETERS | {"share_proj_kv": "True"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expire_span": "True"}, "expire_span is True"),
        ({"adapt_span": "True"}, "adapt_span is True; only models without it can be loaded"),
        ({"nheads": "two"}, "one that is no number: .*two"),
        ({"nlayers": "3"}, "not whole: .*layers.2.norm.weight"),
        ({"feedback": "True"}, "not whole: .*decoder.stack.layer_weight"),
    ],
)
def test_hyperparameters_that_do_not_fit_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_official(transformer_state(), HYPERPARAMETERS | {"feedback": "False"} | changes)


@pytest.mark.parametrize("name", ["feedback", "attn_lim"])
def test_a_missing_hyperparameter_is_named(name: str) -> None:
    given = {key: value for key, value in HYPERPARAMETERS.items() if key != name}
    with pytest.raises(InputError, match=f"lack one.*{name}"):
        from_official(transformer_state(), given)


def test_what_is_no_state_dict_of_the_authors_is_refused() -> None:
    state, given = transformer_state(), HYPERPARAMETERS | {"feedback": "False"}
    with pytest.raises(InputError, match="'layers.0.bias' is not a parameter of the authors' models"):
        from_official(state | {"layers.0.bias": torch.zeros(1)}, given)
    with pytest.raises(InputError, match="not whole: .*proj_key and proj_val for .*layers.1"):
        from_official({k: v for k, v in state.items() if k != "layers.1.attn.proj_val.weight"}, given)
    with pytest.raises(InputError, match="not whole: .*token_emb"):
        from_official({k: v for k, v in state.items() if k != "in_emb.weight"}, given)
