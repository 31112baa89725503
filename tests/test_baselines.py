"""The baselines see what they should see, and nothing else; in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conditioning import Reference
from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer, InputError
from feedback_transformer_pytorch.baselines import (
    MIN_QUERIES,
    AuthorsTransformer,
    HiddenMemory,
    ParallelTransformer,
    TransformerXL,
)

Baseline = ParallelTransformer | TransformerXL
every_kind = pytest.mark.parametrize("kind", [ParallelTransformer, TransformerXL, AuthorsTransformer])
every_cached_kind = pytest.mark.parametrize("kind", [TransformerXL, AuthorsTransformer])
V = 11
VARIANTS: dict[str, dict[str, object]] = {
    "t5": {"position": "t5"},
    "relative": {"position": "relative", "norm": "post"},
    "zeros": {"position": "learned", "memory_start": "zeros", "feedforward": "relu", "feedforward_dim": 5},
}
DEFAULTS: dict[str, object] = {}


@pytest.fixture(autouse=True, params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds for one variant holds for the others."""
    for name, value in VARIANTS[request.param].items():
        monkeypatch.setitem(DEFAULTS, name, value)


def build(kind: type[Baseline], *, mem_len: int = 3, depth: int = 2, seed: int = 0, **options: object) -> Baseline:
    torch.manual_seed(seed)
    needed = {"memory_start": "zeros"} if kind is AuthorsTransformer else {}
    options = {**DEFAULTS, **needed, **options}
    model = kind(num_tokens=V, dim=6, depth=depth, mem_len=mem_len, heads=2, dim_head=3, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def tokens(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, V, (batch, time))


def gradients(out: torch.Tensor, model: Baseline) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(out.square().sum(), parameters)
    return {f"grad {name}": grad for name, grad in zip(names, grads, strict=True)}


def naive(model: Baseline, x: Tensor) -> Tensor:
    """The logits (T, V) of one text (T,), token by token and head by head, for M < 16."""
    config = model.config
    assert config.kv_heads is not None
    is_pre, zero = config.norm == "pre", torch.zeros(config.dim, dtype=torch.float64)
    states = list(model.token_emb(x))
    for layer in model.layers:
        inputs, states = states, []
        read = layer.norm if is_pre else torch.nn.Identity()
        for place, state in enumerate(inputs):
            nearest = 1 if isinstance(model, AuthorsTransformer) else 0
            window = [d for d in range(nearest, config.mem_len + 1) if d <= place or config.memory_start == "zeros"]
            seen = torch.stack([read(inputs[place - d] if d <= place else zero) for d in window])
            queries = layer.to_q(read(state)).view(config.heads, -1)
            keys, values = layer.to_kv(seen).view(len(window), 2, config.kv_heads, -1).unbind(1)
            found = []
            for head, query in enumerate(queries):
                group = head * config.kv_heads // config.heads
                scores = keys[:, group] @ query
                if config.position != "t5":  # each distance below 16 has a row of its own
                    scores = scores + model.position.vectors.weight[window] @ query
                scores = scores / config.dim_head**0.5
                if config.position == "t5":
                    scores = scores + model.position.bias.weight[window, head]
                found.append(scores.softmax(0) @ values[:, group])
            attended = state + layer.to_out(torch.cat(found))
            attended = attended if is_pre else layer.norm(attended)
            feedforward = layer.feedforward
            hidden = feedforward.to_hidden(feedforward.norm(attended) if is_pre else attended)
            if config.feedforward == "relu":
                hidden = hidden.clamp(min=0)
            else:
                hidden = hidden[: config.hidden_dim] * F.gelu(hidden[config.hidden_dim :])
            out = attended + feedforward.to_out(hidden)
            states.append(out if is_pre else feedforward.norm(out))
    last = torch.stack(states)
    return model.to_logits(model.norm(last) if is_pre else last)


@every_kind
@given(data=st.data(), time=st.integers(1, 9), mem_len=st.integers(1, 5))
def test_every_variant_is_its_naive_computation(
    kind: type[Baseline], data: st.DataObject, time: int, mem_len: int
) -> None:
    """Logits and all gradients."""
    choices: dict[str, list[Any]] = {
        "norm": ["pre", "post"],
        "feedforward": ["geglu", "relu"],
        "feedforward_dim": [None, 5],
        "output_bias": [True, False],
        "position": ["t5", "relative", "learned"],
        "memory_start": ["zeros"] if kind is AuthorsTransformer else ["empty", "zeros"],
        "kv_heads": [1, 2],
    }
    options = {name: data.draw(st.sampled_from(values), label=name) for name, values in choices.items()}
    model, x = build(kind, mem_len=mem_len, **options), tokens(1, time)

    def evaluate(compute: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        out = compute(x)
        return {"out": out} | gradients(out, model)

    assert all(("to_out.bias" in layer.state_dict()) == options["output_bias"] for layer in model.layers)

    expected = Reference(model, lambda: evaluate(lambda x: naive(model, x[0])[None]))
    expected.assert_agrees(evaluate(model))


@every_kind
def test_the_authors_initialisation_divides_the_last_linear_of_every_sublayer(kind: type[Baseline]) -> None:
    sizes = {"num_tokens": V, "dim": 6, "depth": 2, "mem_len": 3, "heads": 2, "dim_head": 3, "memory_start": "zeros"}
    states = []
    for initialisation in ("torch", "authors"):
        torch.manual_seed(0)
        states.append(kind(**sizes, initialisation=initialisation).double().state_dict())
    plain, divided = states
    for name, tensor in plain.items():
        torch.testing.assert_close(divided[name] * (2 if "to_out" in name else 1), tensor)  # sqrt(2 * depth) is 2
    assert sum("to_out" in name for name in plain) == 8


@every_kind
def test_a_memory_of_fewer_slots_follows_zero_states(kind: type[Baseline]) -> None:
    """It is the same as one whose first slots are zero states, or are masked."""
    model, x = build(kind, memory_start="zeros").eval(), tokens(2, 4)
    short = HiddenMemory(torch.randn(2, 2, 1, 6, dtype=torch.float64))
    whole = HiddenMemory(F.pad(short.states, (0, 0, 2, 0)))
    masked = HiddenMemory(F.pad(short.states, (0, 0, 2, 0), value=5.0), torch.tensor([[False, False, True]] * 2))
    expected = Reference(model, lambda: {"out": model(x, whole)})
    expected.assert_agrees({"out": model(x, short)})
    expected.assert_agrees({"out": model(x, masked)})


@every_kind
def test_padding_inside_a_text_is_seen_as_a_zero_state(kind: type[Baseline]) -> None:
    model, x = build(kind, memory_start="zeros").eval(), tokens(2, 7)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, 2] = False

    def with_zero_state() -> dict[str, Tensor]:
        _, memory = model(x[:, :3], return_memory=True)
        states = torch.cat([memory.states[:, :, :-1], torch.zeros_like(memory.states[:, :, -1:])], dim=2)
        return {"out": model(x[:, 3:], HiddenMemory(states))}

    Reference(model, with_zero_state).assert_agrees({"out": model(x, mask=mask)[:, 3:]})


@every_kind
@given(time=st.integers(1, 9), mem_len=st.integers(1, 9), where=st.integers(0, 8))
def test_causality(kind: type[Baseline], time: int, mem_len: int, where: int) -> None:
    model, x, where = build(kind, mem_len=mem_len), tokens(2, time), where % time
    changed = x.clone()
    changed[:, where] = (x[:, where] + 1) % V
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :where], after[:, :where])
    assert not torch.equal(before[:, where], after[:, where])


@every_kind
@pytest.mark.parametrize(("time", "mem_len"), [(12, 3), (MIN_QUERIES + 40, 20), (2 * MIN_QUERIES + 1, 2)])
def test_a_layer_reaches_exactly_mem_len_tokens_back(kind: type[Baseline], time: int, mem_len: int) -> None:
    model, x = build(kind, depth=1, mem_len=mem_len), tokens(1, time)
    embedded = model.token_emb(x).detach().requires_grad_()
    model.token_emb.register_forward_hook(lambda *_: embedded)
    out = model(x)
    for query in {mem_len, time // 2, min(MIN_QUERIES, time - 1), time - 1}:
        (gradient,) = torch.autograd.grad(out[0, query].square().sum(), embedded, retain_graph=True)
        seen = gradient[0].abs().sum(1).nonzero()[:, 0].tolist()
        assert seen == list(range(query - mem_len, query + 1))


@every_kind
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_the_queries_are_one_attention(
    kind: type[Baseline], kv_heads: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients do not depend on how the queries are split."""
    model, x = build(kind, mem_len=5, kv_heads=kv_heads), tokens(2, 23)
    flags = {"mask": torch.rand(2, 23) < 0.8, "reset": torch.rand(2, 23) < 0.1} if masked else {}

    def evaluate(size: int) -> dict[str, torch.Tensor]:
        monkeypatch.setattr("feedback_transformer_pytorch.baselines.MIN_QUERIES", size)
        out = model(x, **flags)
        return {"out": out} | gradients(out, model)

    whole = Reference(model, lambda: evaluate(64))
    whole.assert_agrees(evaluate(1))
    whole.assert_agrees(evaluate(7))


@every_cached_kind
@given(time=st.integers(1, 12), mem_len=st.integers(1, 5), cut=st.integers(1, 11), seed=st.integers(0, 99))
def test_a_text_split_anywhere_is_one_call(kind: type[Baseline], time: int, mem_len: int, cut: int, seed: int) -> None:
    """Logits, memory and, where the memory is not detached, gradients."""
    model, x = build(kind, mem_len=mem_len, seed=seed), tokens(2, time)

    def whole() -> dict[str, torch.Tensor]:
        out, memory = model(x, return_memory=True)
        return {"out": out, "states": memory.states} | gradients(out, model)

    memory, parts = None, []
    for part in x.split(cut, dim=1):
        out, memory = model(part, memory, return_memory=True)
        parts.append(out)
    joined = torch.cat(parts, dim=1)
    Reference(model, whole).assert_agrees({"out": joined, "states": memory.states} | gradients(joined, model))


@given(time=st.integers(1, 9), mem_len=st.integers(1, 5))
def test_parallel_is_xl_without_memory(time: int, mem_len: int) -> None:
    parallel, xl, x = (
        build(ParallelTransformer, mem_len=mem_len),
        build(TransformerXL, mem_len=mem_len),
        tokens(2, time),
    )
    Reference(xl, lambda: {"out": xl(x)}).assert_agrees({"out": parallel(x)})


@every_cached_kind
@given(left=st.integers(0, 4), time=st.integers(1, 6), right=st.integers(0, 4))
def test_padding_around_a_text_changes_nothing(kind: type[Baseline], left: int, time: int, right: int) -> None:
    model, x = build(kind), tokens(2, time)
    mask = torch.nn.functional.pad(torch.ones_like(x, dtype=torch.bool), (left, right))
    out = model(torch.nn.functional.pad(x, (left, right), value=1), mask=mask)
    Reference(model, lambda: {"out": model(x)}).assert_agrees({"out": out[:, left : left + time]})


@every_cached_kind
@given(left=st.integers(1, 4), time=st.integers(1, 6))
def test_padding_stays_masked_in_the_memory(kind: type[Baseline], left: int, time: int) -> None:
    model, x, after = build(kind), tokens(2, time), tokens(2, 3)
    mask = torch.nn.functional.pad(torch.ones_like(x, dtype=torch.bool), (left, 0))
    _, padded = model(torch.nn.functional.pad(x, (left, 0), value=1), return_memory=True, mask=mask)

    def plain() -> dict[str, torch.Tensor]:
        _, memory = model(x, return_memory=True)
        return {"out": model(after, memory)}

    Reference(model, plain).assert_agrees({"out": model(after, padded)})


@every_kind
def test_nothing_is_nan_where_all_is_padding(kind: type[Baseline]) -> None:
    model, x = build(kind), tokens(2, 5)
    out = model(x, mask=torch.zeros_like(x, dtype=torch.bool))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_cached_kind
@given(time=st.integers(2, 10), data=st.data())
def test_reset_is_a_separate_call(kind: type[Baseline], time: int, data: st.DataObject) -> None:
    start, cut = data.draw(st.integers(0, time - 1)), data.draw(st.integers(1, time))
    model, before, x, after = build(kind), tokens(2, 4), tokens(2, time), tokens(2, 3)
    _, carried = model(before, return_memory=True)
    reset = torch.zeros_like(x, dtype=torch.bool)
    reset[0, start] = True
    parts, memory = [], carried
    for part, flags in zip(x.split(cut, dim=1), reset.split(cut, dim=1), strict=True):
        out, memory = model(part, memory, return_memory=True, reset=flags)
        parts.append(out)
    parts.append(model(after, memory))
    text = torch.cat([x, after], dim=1)

    def separate() -> dict[str, torch.Tensor]:
        continued = model(text, model(before, return_memory=True)[1])
        fresh = model(text[:, start:])
        return {"out": torch.stack([torch.cat([continued[0, :start], fresh[0]]), continued[1]])}

    Reference(model, separate).assert_agrees({"out": torch.cat(parts, dim=1)})


def test_parallel_forgets_between_calls() -> None:
    model, x = build(ParallelTransformer), tokens(2, 5)
    first, memory = model(x, return_memory=True)
    assert torch.equal(model(x, memory.detach()), first)


def test_the_memory_is_the_newest_slots_and_detaches() -> None:
    model, x = build(TransformerXL, mem_len=3, depth=2), tokens(4, 5)
    _, memory = model(x, return_memory=True)
    assert memory.states.shape == (4, 2, 3, 6)
    assert memory.states.requires_grad
    assert not memory.detach().states.requires_grad
    rows = torch.tensor([2, 2, 0])
    assert torch.equal(memory.select(rows).states, memory.states[rows])


@every_kind
def test_size_is_the_feedback_models_up_to_keys_and_values(kind: type[Baseline]) -> None:
    options = {**DEFAULTS, "memory_start": "zeros", "seq_len": 1}
    config = FeedbackConfig(num_tokens=V, dim=8, depth=3, mem_len=4, heads=4, dim_head=2, kv_heads=2, **options)
    sizes = [sum(p.numel() for p in c.from_config(config).parameters()) for c in (kind, FeedbackTransformer)]
    assert sizes[0] - sizes[1] == (config.depth - 1) * config.dim * 2 * config.kv_dim - (config.depth + 1)


@every_kind
def test_bf16_autocast_is_near_float32(kind: type[Baseline]) -> None:
    model, x, real = build(kind).float(), tokens(2, 9), torch.rand(2, 9) < 0.7
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, mask=real)
    expected = model(x, mask=real)[real]
    assert (out.float()[real] - expected).norm() < 0.1 * expected.norm()


@every_kind
def test_dropout_is_drawn_in_training_only(kind: type[Baseline]) -> None:
    model, x = build(kind, attn_dropout=0.5), tokens(2, 9)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def wrong_memory(**shape: int) -> HiddenMemory:
    sizes = {"batch": 2, "depth": 2, "slots": 3, "dim": 6} | shape
    return HiddenMemory(torch.zeros(*sizes.values(), dtype=torch.float64))


X = torch.ones(2, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: build(TransformerXL, position="legacy"),
            "position is 'legacy'; TransformerXL takes 't5', 'relative' or 'learned'",
        ),
        (lambda: build(ParallelTransformer, adaptive_span=True), "adaptive_span is True; ParallelTransformer attends"),
        (lambda: build(TransformerXL, context_dim=4), "context_dim is 4; TransformerXL takes no context"),
        (
            lambda: build(AuthorsTransformer, memory_start="empty"),
            "memory_start is 'empty'; .* AuthorsTransformer .* give memory_start='zeros'",
        ),
        (lambda: build(TransformerXL, mem_length=3), "'mem_length' is not a hyperparameter of the model"),
        (lambda: TransformerXL(dim=4, depth=1, mem_len=1), "num_tokens is missing"),
        (
            lambda: build(TransformerXL)(X[0]),
            r"x is torch.int64 \(4,\); it must be whole numbers \(batch >= 1, time >= 1\)",
        ),
        (lambda: build(TransformerXL)(X, mask=X[:, :2] > 0), r"mask is torch.bool \(2, 2\)"),
        (lambda: build(TransformerXL)(X, reset=X), r"reset is torch.int64 \(2, 4\)"),
        (lambda: build(TransformerXL)(X, (X, X)), "memory is of type tuple; it must be a HiddenMemory"),
        (lambda: build(TransformerXL)(X, wrong_memory(batch=3)), r"memory.states is \(3, 2, 3, 6\)"),
        (lambda: build(TransformerXL)(X, wrong_memory(slots=4)), "n <= 3"),
        (lambda: build(ParallelTransformer)(X, wrong_memory()), "n <= 0"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
