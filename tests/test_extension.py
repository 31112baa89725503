"""A feed-forward, a position and a backend are added from outside, without a change of the package."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer
from feedback_transformer_pytorch.activation import ACTIVATIONS
from feedback_transformer_pytorch.position import POSITIONS, DistanceBias, Position, ScoreTerm
from feedback_transformer_pytorch.recurrence import WalkRequest, backends
from feedback_transformer_pytorch.recurrence.backends import BACKENDS, TorchBackend
from feedback_transformer_pytorch.recurrence.engine.protocols import StoredGradients
from feedback_transformer_pytorch.recurrence.engine.torch_steps import TorchBackwardSteps, TorchForwardSteps
from feedback_transformer_pytorch.recurrence.engine.walk import Walk
from feedback_transformer_pytorch.recurrence.layout.buffer import Window
from feedback_transformer_pytorch.recurrence.layout.plan import Plan, Segment
from feedback_transformer_pytorch.recurrence.layout.precision import Precision
from feedback_transformer_pytorch.recurrence.ops.chunk import Chunk
from feedback_transformer_pytorch.recurrence.ops.feedforward import FeedForwardOps
from feedback_transformer_pytorch.recurrence.ops.key_value_gradient import KeyValueGradient
from feedback_transformer_pytorch.recurrence.ops.scores import SCORE_OPS
from feedback_transformer_pytorch.recurrence.stack import Stack

BASE: dict[str, Any] = {
    "num_tokens": 7, "dim": 6, "depth": 2, "mem_len": 3, "seq_len": 2, "heads": 4, "dim_head": 3, "kv_heads": 2,
}  # fmt: skip


class Swiglu:
    """silu(gate) * value."""

    parts: ClassVar[int] = 2

    def __call__(self, hidden: Tensor) -> Tensor:
        value, gate = hidden.chunk(2, dim=-1)
        return F.silu(gate) * value

    def step(self, hidden: Tensor) -> Tensor:
        return self(hidden)

    def derivatives(self, hidden: Tensor, out: Tensor, slopes: Tensor) -> None:
        value, gate = hidden.chunk(2, dim=-1)
        sigmoid = gate.sigmoid()
        slopes[:, 0] = gate * sigmoid
        slopes[:, 1] = value * sigmoid * (1 + gate * (1 - sigmoid))
        torch.mul(slopes[:, 0], value, out=out)


class Alibi(Position):
    """A bias that falls with the distance, with a learned slope of each head: a term of a known type."""

    def __init__(self, *, heads: int, dim_head: int, distances: int) -> None:
        super().__init__(heads=heads, dim_head=dim_head, distances=distances)
        self.slopes = nn.Parameter(torch.linspace(0.1, 0.5, heads))

    def forward(self, distances: int) -> list[ScoreTerm]:
        steps = torch.arange(distances, device=self.slopes.device)
        return [DistanceBias(-self.slopes[:, None] * steps)]


class QueryDecay(NamedTuple):
    """The query times one vector, times 1/(1 + distance): a term of a new type."""

    vector: Tensor  # (E,)

    def scores(self, q: Tensor, distance: Tensor) -> Tensor:
        strength = (q @ self.vector).permute(0, 2, 3, 1)[..., None]  # (B, G, H/G, S, 1)
        return strength / (1 + distance)


class QueryDecayScores:
    """`QueryDecay` as operations."""

    columns = 1

    def __init__(self, term: QueryDecay, precision: Precision, needs_grad: bool) -> None:
        self._vector = term.vector.to(precision.attention)
        self.gradients: list[Tensor | None] = [torch.zeros_like(term.vector) if needs_grad else None]

    def of_window(self, distance: Tensor) -> Tensor:
        return 1 / (1 + distance).to(self._vector.dtype)

    def step(self, q: Tensor, window: Tensor) -> Tensor:
        return (q @ self._vector)[..., None] * window

    def step_backward(self, grad_scores: Tensor, window: Tensor) -> Tensor:
        return (grad_scores * window).sum(-1, keepdim=True)

    def add_query_gradient(self, grad_columns: Tensor, grad_q: Tensor) -> None:
        grad_q.view(-1, len(self._vector)).add_(grad_columns.view(-1, 1) * self._vector)

    def accumulate(self, grad_columns: Tensor, q: Tensor) -> None:
        if self.gradients[0] is not None:
            self.gradients[0].add_(grad_columns.reshape(-1) @ q.reshape(-1, len(self._vector)))


class Decay(Position):
    def __init__(self, *, heads: int, dim_head: int, distances: int) -> None:
        super().__init__(heads=heads, dim_head=dim_head, distances=distances)
        self.vector = nn.Parameter(torch.randn(dim_head))

    def forward(self, distances: int) -> list[ScoreTerm]:
        return [QueryDecay(self.vector)]


class CountingSteps(TorchForwardSteps):
    """Steps that somebody else computes; here they are only counted."""

    count = 0

    def step(self, segment: Segment, state: Tensor) -> None:
        type(self).count += 1
        super().step(segment, state)


class AutogradSteps(TorchBackwardSteps):
    """Backward steps of which one part is computed in another way: the gradient through the activation, by autograd."""

    count = 0

    def __init__(self, walk: Walk, memory: KeyValueGradient, grad_bias: Tensor | None) -> None:
        super().__init__(walk, memory, grad_bias)
        self._activation = ACTIVATIONS[walk.config.feedforward]
        for stage in walk.stages:
            if isinstance(stage.ops, FeedForwardOps):
                stage.ops.step_backward = partial(self._feedforward, stage.ops)  # type: ignore[method-assign]

    def begin(self, chunk: Chunk, stored: StoredGradients) -> None:
        super().begin(chunk, stored)
        self._counts = chunk.counts
        self._hidden = [layer.split(chunk.counts) for layer in chunk.value("feedforward.hidden")]

    def _feedforward(
        self, ops: FeedForwardOps, layer: int, index: int, grad: Tensor, window: Window, out: Tensor
    ) -> Tensor:
        type(self).count += 1
        with torch.enable_grad():
            hidden = self._hidden[layer][index].detach().requires_grad_()
            product = self._activation(hidden)
        (grad_hidden,) = torch.autograd.grad(product, hidden, ops.to_out[layer].step_backward(grad))
        ops.grad_hidden[layer].flatten(1).split(self._counts)[index].copy_(grad_hidden)
        return ops.to_hidden[layer].step_backward(grad_hidden, out=out)


class SmallModels(TorchBackend):
    """A backend for narrow models alone."""

    forward_steps = CountingSteps
    backward_steps = AutogradSteps

    def unsupported_reason(self, stack: Stack, request: WalkRequest, plan: Plan, precision: Precision) -> str | None:
        return None if stack.config.dim < 8 else "it is for models narrower than 8"

    def describe(self) -> str:
        return "counted operations"


@pytest.fixture
def registered() -> Iterator[None]:
    ACTIVATIONS["swiglu"] = Swiglu()
    POSITIONS.update(alibi=Alibi, decay=Decay)
    SCORE_OPS[QueryDecay] = QueryDecayScores
    BACKENDS.insert(0, SmallModels())
    CountingSteps.count = AutogradSteps.count = 0
    yield
    del ACTIVATIONS["swiglu"], POSITIONS["alibi"], POSITIONS["decay"], SCORE_OPS[QueryDecay], BACKENDS[0]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    "changes", [{"feedforward": "swiglu"}, {"position": "alibi"}, {"position": "decay"}], ids=lambda c: str(c)
)
def test_parts_from_outside_work_in_the_definition_and_in_the_fast_walk(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = FeedbackTransformer(**BASE, **changes).double()
    tokens = torch.randint(0, 7, (2, 9))
    found = {}
    for implementation in ("stepwise", "fused"):
        model.implementation = implementation  # type: ignore[assignment]
        logits = model(tokens)
        found[implementation] = [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]
    assert (CountingSteps.count, AutogradSteps.count) == (5, 5 * BASE["depth"])
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("registered")
def test_a_backend_that_does_not_apply_leaves_the_walk_to_the_next() -> None:
    wide = FeedbackTransformer(**BASE | {"dim": 8}).double()
    wide(torch.randint(0, 7, (2, 9))).sum().backward()
    assert CountingSteps.count == AutogradSteps.count == 0
    assert backends.BACKENDS[0].describe() == "counted operations"
    with pytest.raises(ValueError, match="swiglu"):
        FeedbackConfig(**BASE | {"feedforward": "swi"})
