"""Where modules are not what the configuration says, the fused walk falls back to the definition, and says why once."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import NUM_TOKENS, Case
from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer
from feedback_transformer_pytorch.layers import Attention
from feedback_transformer_pytorch.recurrence import Stack

CONFIG = FeedbackConfig(
    num_tokens=NUM_TOKENS, dim=6, depth=2, mem_len=4, seq_len=2, heads=2, dim_head=3, attn_dropout=0.2, ff_dropout=0.1
)
CASE = Case(CONFIG, batch=2, time=11, memory_slots=3, seed=0)
Change = Callable[[Stack], object]


@pytest.fixture(autouse=True)
def nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback_transformer_pytorch.recurrence.applicability._warned", set())


@pytest.fixture(autouse=True)
def no_global_hooks() -> Iterator[None]:
    yield
    nn.modules.module._global_forward_hooks.clear()


class Doubled(Attention):
    def forward(self, *arguments: Any) -> Tensor:
        return 2 * super().forward(*arguments)


class Twice(nn.Linear):
    """Another weight under the same name."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return 2 * self._parameters["weight"]

    @weight.setter
    def weight(self, value: nn.Parameter) -> None:
        self.register_parameter("weight", value)


class DoublesCalls(nn.Module):
    def __call__(self, *arguments: Any) -> Any:
        return 2 * super().__call__(*arguments)


class Mixed(nn.Linear, DoublesCalls):
    """Looks like a plain Linear, and is called by its other base."""


def as_class(linear: nn.Linear, cls: type[nn.Linear]) -> None:
    linear.__class__ = cls


def with_bias(linear: nn.Linear) -> nn.Linear:
    return nn.Linear(linear.in_features, linear.out_features).double()


def share_parameter(stack: Stack) -> None:
    stack.layers[1].attention.to_q.weight = stack.layers[0].attention.to_q.weight


def share_module(stack: Stack) -> None:
    stack.layers[1] = stack.layers[0]


def share_inside(stack: Stack) -> None:
    stack.layers[1].feedforward.to_out = stack.layers[0].feedforward.to_out


def doubled_forward(stack: Stack) -> None:
    attention = stack.layers[0].attention
    plain = attention.forward
    attention.forward = lambda *arguments: 2 * plain(*arguments)  # type: ignore[method-assign]


def hook(module: nn.Module, _: Any, out: Tensor) -> Tensor | None:
    return 2 * out if isinstance(module, Attention) else None


CHANGES: dict[str, tuple[Change, str]] = {
    "a layer in eval mode": (lambda stack: stack.layers[0].eval(), r"layers\.0\.attention is in eval mode"),
    "another dropout": (lambda s: setattr(s.layers[1].feedforward, "dropout", 0.5), r"has dropout=0\.5"),
    "dropout off": (lambda s: setattr(s.layers[0].attention, "dropout", 0.0), r"has dropout=0\.0"),
    "a bias on to_kv": (lambda s: setattr(s, "to_kv", with_bias(s.to_kv)), "to_kv has parameters"),
    "a bias on to_q": (
        lambda s: setattr(s.layers[0].attention, "to_q", with_bias(s.layers[0].attention.to_q)),
        r"layers\.0\.attention\.to_q has parameters \['bias', 'weight'\]",
    ),
    "layers that are one module": (share_module, r"layers\.1 is also layers\.0"),
    "linears that are one module": (share_inside, r"layers\.1\.feedforward\.to_out is also layers\.0"),
    "layers that share a parameter": (share_parameter, r"to_q\.weight is also layers\.0\.attention\.to_q\.weight"),
    "a global hook": (lambda _: nn.modules.module.register_module_forward_hook(hook), "a global module hook"),
    "a forward of its own": (doubled_forward, r"layers\.0\.attention has a forward of its own"),
    "a subclass that computes another function": (
        lambda s: setattr(s.layers[0], "attention", Doubled(CONFIG).double()),
        r"layers\.0\.attention is a Doubled, not a plain Attention",
    ),
    "a property in a parameter's place": (
        lambda s: as_class(s.layers[0].attention.to_q, Twice),
        r"layers\.0\.attention\.to_q is a Twice, not a plain Linear",
    ),
    "a base that is called instead": (
        lambda s: as_class(s.layers[0].attention.to_q, Mixed),
        r"layers\.0\.attention\.to_q is a Mixed, not a plain Linear",
    ),
    "a norm without parameters": (
        lambda s: setattr(s.layers[0].attention, "norm", nn.LayerNorm(6, elementwise_affine=False)),
        "elementwise_affine=False",
    ),
    "an activation instead of a linear": (
        lambda s: setattr(s.layers[0].feedforward, "to_out", nn.Sequential(s.layers[0].feedforward.to_out)),
        "the modules are not those of the configuration",
    ),
    "an embedding that normalises": (lambda s: setattr(s.position.bias, "max_norm", 1.0), r"max_norm=1\.0"),
}


def outputs(model: FeedbackTransformer) -> list[Tensor]:
    """The logits, and all gradients."""
    model.zero_grad()
    torch.manual_seed(3)
    logits = model(CASE.tokens(), CASE.memory())
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("how", CHANGES)
def test_what_is_not_computed_takes_the_definition_and_says_why_once(how: str) -> None:
    change, reason = CHANGES[how]
    model = CASE.model(implementation="fused")
    change(model.decoder.stack)
    with pytest.warns(UserWarning, match=f"falls back to the slower definition: .*{reason}"):
        found = outputs(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs(model)
    model.implementation = "stepwise"
    assert all(map(torch.equal, found, outputs(model)))


class Subclass(Attention):
    """Changes nothing."""

    note = "mine"

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__(config)
        self.extra = 1

    def extra_repr(self) -> str:
        return "mine"

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict(*args, **kwargs)


def subclassed(stack: Stack) -> None:
    stack.layers[0].attention = Subclass(CONFIG).double()


HARMLESS: dict[str, Change] = {
    "a tag": lambda stack: setattr(stack.layers[0], "_is_initialised", True),
    "a norm in eval mode": lambda stack: stack.layers[0].attention.norm.eval(),
    "another eps": lambda stack: setattr(stack.layers[0].attention.norm, "eps", 1e-3),
    "a subclass that changes nothing": subclassed,
    "a hook that is gone": lambda stack: stack.layers[0].register_forward_hook(hook).remove(),
}


@pytest.mark.parametrize("how", HARMLESS)
def test_what_changes_nothing_stays_fast(how: str) -> None:
    model = CASE.model(implementation="fused")
    HARMLESS[how](model.decoder.stack)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = outputs(model)
    model.implementation = "stepwise"
    for a, b in zip(found, outputs(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_without_dropout_the_mode_of_a_layer_does_not_matter() -> None:
    config = dataclasses.replace(CONFIG, attn_dropout=0.0, ff_dropout=0.0)
    model = dataclasses.replace(CASE, config=config).model(implementation="fused")
    model.decoder.stack.layers[0].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs(model)


def test_a_whole_number_for_a_real_one_keeps_the_fast_path() -> None:
    for dropout in (0.0, 0):
        config = FeedbackConfig.from_dict(CONFIG.to_dict() | {"attn_dropout": dropout, "ff_dropout": dropout})
        model = dataclasses.replace(CASE, config=config).model(implementation="fused")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outputs(model)


def test_a_subclass_of_the_model_keeps_the_fast_path() -> None:
    class Mine(FeedbackTransformer):
        @functools.cached_property
        def note(self) -> str:
            return "mine"

    torch.manual_seed(0)
    model = Mine(**CONFIG.to_dict()).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(CASE.tokens())
