"""Generation with every variant of the model: what is read token by token is what a call computes."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cases import NUM_TOKENS, Case, definition
from feedback_transformer_pytorch import FeedbackConfig, InputError, ParallelTransformer, generate
from feedback_transformer_pytorch.generation import Reader
from feedback_transformer_pytorch.recurrence import incremental
from feedback_transformer_pytorch.recurrence.incremental import Incremental

PAPER = FeedbackConfig(
    num_tokens=NUM_TOKENS, dim=6, depth=2, mem_len=5, seq_len=1, heads=2, dim_head=3, kv="per_layer",
    position="learned", memory_norm="layer", feedforward="relu", output_bias=False, carry="state",
    memory_start="zeros", adaptive_span=True, span_init=0.3, span_ramp=2, span_trim=2, initialisation="authors",
)  # fmt: skip
CONTEXT_DIM = 3


@st.composite
def variants(draw: st.DrawFn, **fixed: Any) -> Case:
    norm = draw(st.sampled_from(["pre", "post"]))
    depth = draw(st.integers(1, 3))
    fields: dict[str, Any] = {
        "num_tokens": NUM_TOKENS,
        "dim": 6,
        "depth": depth,
        "mem_len": draw(st.integers(1, 6)),
        "seq_len": draw(st.integers(1, 3)),
        "heads": 2,
        "dim_head": 3,
        "kv_heads": draw(st.integers(1, 2)),
        "position": draw(st.sampled_from(["t5", "relative", "learned"])),
        "kv": draw(st.sampled_from(["shared", "per_layer"])),
        "norm": norm,
        "memory_norm": draw(st.sampled_from(["none", "plain", *(["layer"] if norm == "pre" else [])])),
        "feedforward": draw(st.sampled_from(["geglu", "relu"])),
        "feedforward_dim": draw(st.sampled_from([None, 7])),
        "output_bias": draw(st.booleans()),
        "stored": draw(st.sampled_from(["mix", "top", 0, depth])),
        "carry": draw(st.sampled_from(["keys", "state"])),
        "memory_start": draw(st.sampled_from(["empty", "zeros"])),
        "adaptive_span": draw(st.booleans()),
        "span_init": draw(st.sampled_from([0.0, 0.4])),
        "span_ramp": draw(st.integers(1, 3)),
        "span_trim": draw(st.integers(1, 3)),
        "context_dim": draw(st.sampled_from([None, CONTEXT_DIM])),
    }
    time = draw(st.integers(2, 14))
    config = FeedbackConfig(**{**fields, **fixed})
    return Case(config, draw(st.integers(1, 2)), time, 0, draw(st.integers(0, 9999)))


def context_of(case: Case) -> dict[str, Tensor]:
    """A context of four tokens, of which the last row sees three."""
    if case.config.context_dim is None:
        return {}
    torch.manual_seed(case.seed + 9)
    mask = torch.ones(case.batch, 4, dtype=torch.bool)
    mask[-1, 1] = False
    return {"context": torch.randn(case.batch, 4, CONTEXT_DIM, dtype=torch.float64), "context_mask": mask}


def assert_reads_like_calls(case: Case, pieces: list[int], behind: int = 0) -> None:
    """At every point the logits are those of the whole text with one more token in the segment, as in training.

    `behind` tokens, whole segments, are read by a call, whose memory the reader takes over.
    """
    model, context, x = case.model(), context_of(case), case.tokens()
    seq_len = case.config.seq_len
    beyond = F.pad(x, (0, -case.time % seq_len))
    memory = model(x[:, :behind], return_memory=True, **context)[1].detach() if behind else None
    ends = [end for end in itertools.accumulate(pieces, initial=behind) if end <= case.time]
    reader = Reader(model, memory, **context)
    found = {f"{end}": reader.read(x[:, start:end]) for start, end in itertools.pairwise(ends)}

    def whole() -> dict[str, Tensor]:
        past = model(x[:, :behind], return_memory=True, **context)[1].detach() if behind else None
        logits = model(beyond[:, behind:], past, **context)
        return {f"{end}": logits[:, end - 1 - behind] for end in ends[1:]}

    definition(model, whole).assert_agrees(found)


@given(variants(), st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_reading_in_pieces_gives_the_logits_of_the_whole_text(case: Case, pieces: list[int]) -> None:
    assert_reads_like_calls(case, pieces)


@given(variants(), st.data())
def test_reading_goes_on_behind_a_memory(case: Case, data: st.DataObject) -> None:
    seq_len = case.config.seq_len
    behind = seq_len * data.draw(st.integers(0, (case.time - 1) // seq_len))
    assert_reads_like_calls(case, [1] * (case.time - behind), behind)


@pytest.mark.parametrize("context_dim", [None, CONTEXT_DIM])
def test_a_walk_that_is_set_up_many_times_reads_the_same(
    monkeypatch: pytest.MonkeyPatch, context_dim: int | None
) -> None:
    monkeypatch.setattr(incremental, "TOKENS_AT_ONCE", 3)
    assert_reads_like_calls(Case(replace(PAPER, context_dim=context_dim), 2, 14, 0, 1), [1] * 14)


@pytest.mark.parametrize("config", [PAPER, replace(PAPER, context_dim=CONTEXT_DIM)], ids=["paper", "context"])
def test_the_walk_is_set_up_once(monkeypatch: pytest.MonkeyPatch, config: FeedbackConfig) -> None:
    starts, begin = [], Incremental.__init__
    monkeypatch.setattr(Incremental, "__init__", lambda *args: starts.append(1) or begin(*args))
    case = Case(config, 2, 8, 0, 0)
    reader = Reader(case.model(), **context_of(case))
    for token in case.tokens().split(1, dim=1):
        reader.read(token)
    assert len(starts) == 1
    assert reader.memory.states.shape == (2, 5, 6)


@pytest.mark.parametrize("way", ["walk", "calls of the fused walk", "calls of the definition"])
def test_the_keys_of_a_context_are_made_once(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(incremental, "TOKENS_AT_ONCE", 3)
    if way == "calls of the fused walk":
        monkeypatch.setattr(Incremental, "applies", lambda *_: False)
    case = Case(replace(PAPER, context_dim=CONTEXT_DIM, seq_len=3), 2, 15, 0, 1)
    model, context, tokens = case.model(), context_of(case), case.tokens()
    model.implementation = "stepwise" if way == "calls of the definition" else "fused"
    reader = Reader(model, **context)
    found = {"0": reader.read(tokens[:, :1])}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in model.decoder.stack.layers:  # keys that are made a second time are NaN
        torch.nn.init.constant_(layer.cross_attention.to_kv.weight, torch.nan)
    found |= {f"{n}": reader.read(tokens[:, n : n + 1]) for n in range(1, 15)}
    model.load_state_dict(weights)
    definition(model, lambda: {f"{n}": model(tokens, **context)[:, n] for n in range(15)}).assert_agrees(found)


def test_keys_of_a_context_serve_calls_without_gradients_alone() -> None:
    case = Case(replace(PAPER, context_dim=CONTEXT_DIM), 2, 5, 0, 1)
    model, context = case.model(), context_of(case)
    made = model.decoder.project_context(context["context"])
    with pytest.raises(InputError, match="give the context itself"):
        model(case.tokens(), context=made)
    with torch.no_grad():
        torch.testing.assert_close(
            model(case.tokens(), context=made, context_mask=context["context_mask"]), model(case.tokens(), **context)
        )
        with pytest.raises(InputError, match=r"keys \(2, 4, 2, 3\).*they must be \(batch=1"):
            model(case.tokens()[:1], context=made)


def test_greedy_is_the_argmax_of_the_whole_text() -> None:
    case = Case(replace(PAPER, context_dim=CONTEXT_DIM), 2, 8, 0, 0)
    model, prompt, context = case.model(), case.tokens(), context_of(case)
    written = torch.stack(list(generate(model, prompt, max_new_tokens=9, temperature=0, **context)), 1)
    text = torch.cat([prompt, written], 1)
    for n in range(8, 17):
        assert torch.equal(model(text[:, :n], **context)[:, -1].argmax(-1), text[:, n])


def test_a_context_that_the_model_lacks_or_needs_is_named() -> None:
    tokens, context = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 4, CONTEXT_DIM).double()
    without, with_context = (Case(replace(PAPER, context_dim=dim), 1, 1, 0, 0).model() for dim in (None, CONTEXT_DIM))
    with pytest.raises(InputError, match="context is given, but the model has none"):
        Reader(without, context=context).read(tokens)
    with pytest.raises(InputError, match="context is missing"):
        Reader(with_context).read(tokens)
    with pytest.raises(InputError, match=r"context is \(1, 4, 2\); it must be"):
        Reader(with_context, context=context[..., :2]).read(tokens)
    baseline = ParallelTransformer(num_tokens=NUM_TOKENS, dim=8, depth=1, mem_len=4, heads=2, dim_head=4)
    with pytest.raises(InputError, match="context is given, but a ParallelTransformer has none; leave it out"):
        Reader(baseline, context=context)
