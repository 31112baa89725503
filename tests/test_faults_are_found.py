"""The comparison with the definition finds small faults in the fused walk, also where it magnifies rounding errors.

Each fault is planted alone into the walk by torch's operations. The comparison is the one that the property tests make.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import NUM_TOKENS, Case, definition
from conditioning import Reference
from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer
from feedback_transformer_pytorch.activation import Geglu
from feedback_transformer_pytorch.position import DistanceBias
from feedback_transformer_pytorch.recurrence.engine import walk
from feedback_transformer_pytorch.recurrence.engine.derived import Derived
from feedback_transformer_pytorch.recurrence.engine.torch_steps import TorchBackwardSteps
from feedback_transformer_pytorch.recurrence.layout import plan
from feedback_transformer_pytorch.recurrence.layout.buffer import MemoryBuffer, Window
from feedback_transformer_pytorch.recurrence.native import applicability
from feedback_transformer_pytorch.recurrence.ops import norm
from feedback_transformer_pytorch.recurrence.ops.attention import AttentionOps
from feedback_transformer_pytorch.recurrence.ops.attention_core import AttentionCore
from feedback_transformer_pytorch.recurrence.ops.chunk import Chunk
from feedback_transformer_pytorch.recurrence.ops.feedforward import FeedForwardOps
from feedback_transformer_pytorch.recurrence.ops.key_value_gradient import KeyValueGradient
from feedback_transformer_pytorch.recurrence.ops.linear import Linear
from feedback_transformer_pytorch.recurrence.ops.norm import Norm
from feedback_transformer_pytorch.recurrence.ops.scores import VectorScores
from feedback_transformer_pytorch.recurrence.ops.sublayer import Residual
from feedback_transformer_pytorch.recurrence.stack import Stack
from feedback_transformer_pytorch.recurrence.substitution import with_parameters
from test_fused import run

LITTLE = 1e-6


@dataclass(frozen=True)
class Example:
    case: Case
    recompute: bool = False
    masked: bool = False  # some tokens are padding, and the memory is emptied before some

    def evaluate(self, model: FeedbackTransformer) -> dict[str, Tensor]:
        flags = {"mask": self.case.flags(0.7), "reset": self.case.flags(0.2, salt=4)} if self.masked else {}
        torch.manual_seed(7)
        return run(model, self.case.tokens(), self.case.memory(), **flags)

    @property
    def several_keys(self) -> bool:
        """With a single one its probability is 1, and its score has no gradient."""
        return self.case.config.mem_len > 1 or self.case.config.seq_len > 1

    @property
    def several_distances(self) -> bool:
        """Whether they have different biases: legacy counts every slot of a single token as near as can be."""
        if self.case.config.position == "relative":
            return False
        return self.several_keys and (self.case.config.position != "legacy" or self.case.config.seq_len > 1)

    @property
    def vectors(self) -> bool:
        """Whether distances have vectors that make a difference."""
        return self.case.config.position == "relative" and self.several_keys

    @property
    def blind_rows(self) -> bool:
        """Whether some tokens have nothing to attend to."""
        return self.masked or (self.case.config.seq_len == 1 and self.case.memory_slots == 0)


CONFIG = FeedbackConfig(num_tokens=NUM_TOKENS, dim=6, depth=2, mem_len=5, seq_len=1, heads=2, dim_head=3)
EXAMPLES = {
    "gradients of 8,000": Example(
        Case(replace(CONFIG, dim=4, depth=3, mem_len=1, heads=1, kv_heads=1, dim_head=2), 2, 13, 1, 1487),
        recompute=True,
    ),
    "errors grow 100,000 times": Example(
        Case(replace(CONFIG, heads=1, kv_heads=1, keep_last_hidden=True, position="legacy"), 2, 14, 0, 508)
    ),
    "segments": Example(Case(replace(CONFIG, seq_len=3, heads=4, kv_heads=2, norm_memory=True), 3, 11, 3, 0)),
    "legacy segments": Example(Case(replace(CONFIG, seq_len=2, position="legacy", dim=4), 2, 13, 4, 1), recompute=True),
    "dropout": Example(
        Case(replace(CONFIG, seq_len=2, attn_dropout=0.3, ff_dropout=0.3, norm_memory=True), 2, 14, 2, 2)
    ),
    "relative": Example(Case(replace(CONFIG, position="relative", norm_memory=True), 2, 14, 3, 4)),
    "relative segments": Example(
        Case(replace(CONFIG, position="relative", seq_len=3, heads=4, kv_heads=2), 2, 13, 2, 5), recompute=True
    ),
    "padding and resets": Example(Case(replace(CONFIG, depth=1, mem_len=3), 3, 13, 2, 3), masked=True),
}
Plant = Callable[[pytest.MonkeyPatch], None]


def always(example: Example) -> bool:
    return True


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Puts a function of the original and its arguments in its place."""
    original = getattr(owner, name)

    def wrapped(*args: Any) -> Any:
        return wrapper(original, *args)

    static = isinstance(inspect.getattr_static(owner, name), staticmethod)
    patch.setattr(owner, name, staticmethod(wrapped) if static else wrapped)


def take_from_residual(patch: pytest.MonkeyPatch, name: str, part: float) -> None:
    """Takes a part of the gradient that goes past a sub-layer."""

    def wrapper(original: Any, self: Residual, layer: int, index: int, grad: Tensor, *rest: Any) -> Tensor:
        found = original(self, layer, index, grad, *rest)
        return found.sub_(part * grad) if self.name == name else found

    wrap(patch, Residual, "step_backward", wrapper)


def residual_of_feedforward(patch: pytest.MonkeyPatch) -> None:
    """A little of the gradient that goes past the feed-forward."""
    take_from_residual(patch, "feedforward", LITTLE)


def residual_of_attention(patch: pytest.MonkeyPatch) -> None:
    """All of the gradient that goes past the attention."""
    take_from_residual(patch, "attention", 1)


def gradient_of_mix(patch: pytest.MonkeyPatch) -> None:
    """What the memory gives back to the embeddings."""

    def wrapper(original: Any, self: Any, *args: Any) -> None:
        original(self, *args)
        if self._mix is not None:
            self._mix = (torch.zeros_like(self._mix[0]), *self._mix[1:])

    wrap(patch, TorchBackwardSteps, "__init__", wrapper)


def mean_in_norm(patch: pytest.MonkeyPatch) -> None:
    def wrapper(original: Any, grad: Tensor, *args: Any) -> Any:
        _, _, _, rstd, weight, *_ = args
        found = original(grad, *args)
        return found if found[0] is None else (found[0] + rstd * (grad * weight).mean(-1, keepdim=True), *found[1:])

    wrap(patch, norm, "_norm_backward", wrapper)


def variance_in_norm(patch: pytest.MonkeyPatch) -> None:
    def wrapper(original: Any, grad: Tensor, x: Tensor, shape: Any, mean: Tensor, rstd: Tensor, *rest: Any) -> Any:
        found = original(grad, x, shape, mean, rstd, *rest)
        if found[0] is None:
            return found
        normed = (x - mean) * rstd
        return found[0] + rstd * normed * (grad * rest[0] * normed).mean(-1, keepdim=True), *found[1:]

    wrap(patch, norm, "_norm_backward", wrapper)


def eps_of_norms(patch: pytest.MonkeyPatch) -> None:
    """1e-6 instead of 1e-5."""
    wrap(patch, Norm, "__init__", lambda f, self, weight, bias, eps, *rest: f(self, weight, bias, eps / 10, *rest))


def eps_of_memory_norm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walk, "NORM_EPS", 1e-6)


def norms_of_earlier_chunks(patch: pytest.MonkeyPatch) -> None:
    """Only the last chunk counts for the norms' parameters."""

    def wrapper(original: Any, self: Norm, *args: Any) -> None:
        for total in self.gradients:
            if total is not None:
                total.zero_()
        original(self, *args)

    wrap(patch, Norm, "accumulate", wrapper)


def scale_of_queries(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the query weights, a millionth too large."""

    def wrapper(original: Any, self: Linear, grad: Tensor, x: Tensor) -> None:
        original(self, grad * (1 + LITTLE) if self.scale != 1 else grad, x)

    wrap(patch, Linear, "accumulate", wrapper)


def weights_in_float32(patch: pytest.MonkeyPatch) -> None:
    """Gradients of outputs lose half of their digits before they become those of the weights."""
    wrap(patch, Linear, "accumulate", lambda f, self, grad, x: f(self, grad.float().double(), x))


def probabilities_in_float32(patch: pytest.MonkeyPatch) -> None:
    def wrapper(original: Any, *args: Any) -> Tensor:
        found = original(*args)
        return found.copy_(found.float())

    wrap(patch, AttentionCore, "probabilities", wrapper)


def memory_in_float32(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, MemoryBuffer, "write", lambda f, self, segment, rows: f(self, segment, rows.float().double()))


def gelu_by_tanh(patch: pytest.MonkeyPatch) -> None:
    def wrapper(original: Any, self: Geglu, hidden: Tensor) -> Tensor:
        value, gate = hidden.chunk(2, dim=-1)
        return torch.nn.functional.gelu(gate, approximate="tanh") * value

    wrap(patch, Geglu, "step", wrapper)


def slope_of_gate(patch: pytest.MonkeyPatch) -> None:
    def wrapper(original: Any, self: Geglu, hidden: Tensor, out: Tensor, slopes: Tensor) -> None:
        original(self, hidden, out, slopes)
        slopes[:, 1] *= 1 + LITTLE

    wrap(patch, Geglu, "derivatives", wrapper)


def dropout_of_feedforward(patch: pytest.MonkeyPatch) -> None:
    """Its mask is not applied in the backward pass."""

    def wrapper(original: Any, self: FeedForwardOps, chunk: Chunk) -> None:
        original(self, chunk)
        for hidden, steps in zip(chunk.value("feedforward.hidden"), self._steps, strict=True):
            for part, (slopes, *_) in zip(hidden.split(chunk.counts), steps, strict=True):
                self._activation.derivatives(part, torch.empty_like(slopes[:, 0]), slopes)

    wrap(patch, FeedForwardOps, "split", wrapper)


def dropout_of_attention(patch: pytest.MonkeyPatch) -> None:
    """Its mask is not applied in the backward pass to the scores."""
    wrap(patch, AttentionCore, "grad_weights", lambda f, grad, values_t, own, mask: f(grad, values_t, own, None))


def bucket_of_bias_gradient(patch: pytest.MonkeyPatch) -> None:
    """The gradient of each distance's bias lands at the next one."""

    def wrapper(original: Any, self: MemoryBuffer, segment: Any, grad_scores: Tensor, out: Tensor) -> None:
        found = torch.zeros_like(out)
        original(self, segment, grad_scores, found)
        out.add_(found.roll(1, 1))

    wrap(patch, MemoryBuffer, "add_bias_gradient", wrapper)


def bucket_of_distance(patch: pytest.MonkeyPatch) -> None:
    """Every key is taken for one token further away."""

    def wrapper(original: Any, stack: Stack, parameters: Mapping[str, Tensor]) -> Derived:
        config = stack.config
        further = with_parameters(stack, parameters).position(config.mem_len + config.seq_len + 1)
        return original(stack, parameters)._replace(terms=[DistanceBias(term.bias[:, 1:]) for term in further])

    wrap(patch, walk, "derive", wrapper)


def shifted_keys(patch: pytest.MonkeyPatch) -> None:
    """Keys are one slot away from their values."""

    def wrapper(original: Any, *args: Any) -> list[Window]:
        return [
            window._replace(
                keys=[keys.roll(1, 1) for keys in window.keys], keys_t=[keys.roll(1, 2) for keys in window.keys_t]
            )
            for window in original(*args)
        ]

    wrap(patch, MemoryBuffer, "windows", wrapper)


def shifted_values_backward(patch: pytest.MonkeyPatch) -> None:
    """Values are one slot away from their probabilities, in the backward pass only."""

    def wrapper(original: Any, *args: Any) -> Tensor:
        return original(*(shifted(arg) if isinstance(arg, Window) else arg for arg in args))

    def shifted(window: Window) -> Window:
        return window._replace(values_t=[values.roll(1, 2) for values in window.values_t])

    wrap(patch, AttentionOps, "step_backward", wrapper)


def bias_where_nothing_is_seen(patch: pytest.MonkeyPatch) -> None:
    """A token that has nothing to attend to gets the attention's output all the same."""
    wrap(patch, MemoryBuffer, "_for_rows", lambda original, *args: None)


def last_segment_of_strip(patch: pytest.MonkeyPatch) -> None:
    """What it gives to the keys and values that it sees."""

    def wrapper(original: Any, self: KeyValueGradient, segment: int, *gradients: Tensor) -> None:
        is_last = segment + 1 == self.operands.shape[2]
        original(self, segment, *(0 * gradient if is_last else gradient for gradient in gradients))

    wrap(patch, KeyValueGradient, "add", wrapper)


def slots_before_strip(patch: pytest.MonkeyPatch) -> None:
    """What a strip gives to the slots before it."""
    wrap(patch, KeyValueGradient, "end", lambda original, self: None)


def local_keys_and_values(patch: pytest.MonkeyPatch) -> None:
    """What a segment gives to its own."""
    wrap(patch, AttentionCore, "grad_local", lambda original, *args: original(*args).zero_())


def carried_values(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the memory that was given, a millionth too large."""

    def wrapper(original: Any, *args: Any) -> tuple[Tensor, Tensor]:
        keys, values = original(*args)
        return keys, values * (1 + LITTLE)

    wrap(patch, MemoryBuffer, "carried_gradient", wrapper)


def returned_values(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the memory that is left."""
    wrap(patch, MemoryBuffer, "gradient", lambda f, self, keys, values, dtype: f(self, keys, None, dtype))


def mean_of_layer_weights(patch: pytest.MonkeyPatch) -> None:
    """What the softmax of the layer weights subtracts."""

    def wrapper(original: Any, stack: Stack, parameters: Mapping[str, Tensor]) -> Derived:
        derived, weight = original(stack, parameters), parameters["layer_weight"]
        if derived.mix is None:
            return derived
        mix = derived.mix.detach()
        return derived._replace(mix=mix + mix * (weight - weight.detach()))

    wrap(patch, walk, "derive", wrapper)


def score_of_distance(patch: pytest.MonkeyPatch) -> None:
    """What a distance adds to a score, a millionth too large."""
    wrap(patch, VectorScores, "step", lambda f, *args: f(*args) * (1 + LITTLE))


def query_of_distance(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the query by way of the distance's vector."""
    wrap(patch, VectorScores, "add_query_gradient", lambda original, *args: None)


def vector_of_distance(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the vectors, a millionth too large."""
    wrap(patch, VectorScores, "accumulate", lambda f, self, columns, q: f(self, columns * (1 + LITTLE), q))


def bucket_of_vector(patch: pytest.MonkeyPatch) -> None:
    """Every distance takes the next one's vector."""
    wrap(patch, VectorScores, "of_window", lambda f, *args: f(*args) + 1)


def gradient_of_next_bucket(patch: pytest.MonkeyPatch) -> None:
    """The gradient of each distance's vector lands at the next one."""
    wrap(patch, VectorScores, "step_backward", lambda f, *args: f(*args).roll(1, -1))


# Each with the examples in which it changes something.
FAULTS: dict[Plant, Callable[[Example], bool]] = {
    residual_of_feedforward: always,
    residual_of_attention: always,
    gradient_of_mix: lambda example: example.case.config.stored == "mix",
    mean_in_norm: always,
    variance_in_norm: always,
    eps_of_norms: always,
    eps_of_memory_norm: lambda example: example.case.config.memory_norm == "plain",
    norms_of_earlier_chunks: always,
    scale_of_queries: lambda example: example.several_keys,
    weights_in_float32: always,
    probabilities_in_float32: lambda example: example.several_keys,
    memory_in_float32: always,
    gelu_by_tanh: always,
    slope_of_gate: always,
    dropout_of_feedforward: lambda example: example.case.config.ff_dropout > 0,
    dropout_of_attention: lambda example: example.case.config.attn_dropout > 0,
    bucket_of_bias_gradient: lambda example: example.several_distances,
    bucket_of_distance: lambda example: example.several_distances,
    shifted_keys: lambda example: example.case.config.mem_len > 1,
    shifted_values_backward: lambda example: example.case.config.mem_len > 1,
    score_of_distance: lambda example: example.vectors,
    query_of_distance: lambda example: example.vectors,
    vector_of_distance: lambda example: example.vectors,
    bucket_of_vector: lambda example: example.vectors,
    gradient_of_next_bucket: lambda example: example.vectors,
    bias_where_nothing_is_seen: lambda example: example.blind_rows,
    last_segment_of_strip: always,
    slots_before_strip: always,
    local_keys_and_values: lambda example: example.case.config.seq_len > 1,
    carried_values: lambda example: example.case.memory_slots > 0,
    returned_values: always,
    mean_of_layer_weights: lambda example: example.case.config.stored == "mix",
}


@pytest.fixture(autouse=True)
def operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's operations walk, in several strips and chunks."""
    monkeypatch.setattr(plan, "STRIP_QUERIES", 4)
    monkeypatch.setattr(plan, "CHUNK_ROWS", 20)
    monkeypatch.setattr(applicability, "library", lambda: None)


@cache
def model_and_reference(name: str) -> tuple[FeedbackTransformer, Reference]:
    example = EXAMPLES[name]
    model = example.case.model(recompute=example.recompute, implementation="fused")
    return model, definition(model, lambda: example.evaluate(model))


@pytest.mark.parametrize("name", EXAMPLES)
def test_without_a_fault_the_walk_is_the_definition(name: str) -> None:
    model, reference = model_and_reference(name)
    reference.assert_agrees(EXAMPLES[name].evaluate(model))


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_is_found_in_every_example_in_which_it_changes_something(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name, example in EXAMPLES.items() if FAULTS[plant](example)]
    assert names
    plant(monkeypatch)
    for name in names:
        model, reference = model_and_reference(name)
        with pytest.raises(AssertionError, match="what rounding explains"):
            reference.assert_agrees(EXAMPLES[name].evaluate(model))
