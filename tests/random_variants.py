"""Random models over all variants, in float64, with their inputs."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer

NUM_TOKENS = 11
CONTEXT_DIM = 5


@dataclass(frozen=True)
class Variant:
    config: FeedbackConfig
    batch: int
    time: int
    seed: int
    rows_differ: bool
    recompute: bool

    def model(self, **options: Any) -> FeedbackTransformer:
        torch.manual_seed(self.seed)
        model = FeedbackTransformer.from_config(self.config, recompute=self.recompute, **options).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():  # none may stay at 0 or 1
                if name.endswith("span.ratio"):
                    parameter.uniform_(0, 0.8)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        return model

    def tokens(self) -> Tensor:
        torch.manual_seed(self.seed + 1)
        return torch.randint(0, NUM_TOKENS, (self.batch, self.time))

    def context(self) -> tuple[Tensor | None, Tensor | None]:
        """A context with a mask; none if the model has none."""
        if self.config.context_dim is None:
            return None, None
        torch.manual_seed(self.seed + 2)
        context = torch.randn(self.batch, 3, CONTEXT_DIM, dtype=torch.float64, requires_grad=True)
        mask = torch.rand(self.batch, 3) < 0.7
        return context, mask if self.seed % 2 else None

    def flags(self) -> dict[str, Tensor]:
        """A mask and resets; none if all rows are alike."""
        if not self.rows_differ:
            return {}
        torch.manual_seed(self.seed + 3)
        shape = self.batch, self.time
        return {"mask": torch.rand(shape) < 0.7, "reset": torch.rand(shape) < 0.2}


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    """Small models of every variant that is allowed."""

    def one_of(*choices: Any) -> Any:
        return draw(st.sampled_from(choices))

    groups, depth, norm = one_of(1, 2), one_of(1, 2, 3), one_of("pre", "post")
    memory_norm = one_of("none", "plain", "layer") if norm == "pre" else one_of("none", "plain")
    position = one_of("t5", "relative", "learned", "legacy")
    dropout = one_of(0.0, 0.0, 0.3)
    config = FeedbackConfig(
        num_tokens=NUM_TOKENS,
        dim=one_of(4, 6),
        depth=depth,
        mem_len=draw(st.integers(1, 5)),
        seq_len=draw(st.integers(1, 3)),
        heads=groups * one_of(1, 2),
        dim_head=one_of(2, 3),
        kv_heads=groups,
        attn_dropout=dropout,
        ff_dropout=dropout,
        position=position,
        kv=one_of("shared", "per_layer"),
        norm=norm,
        memory_norm=memory_norm,
        feedforward=one_of("geglu", "relu"),
        feedforward_dim=one_of(None, 5),
        output_bias=draw(st.booleans()),
        stored=one_of("mix", "top", draw(st.integers(0, depth))),
        carry=one_of("keys", "state", *(["normed_state"] if memory_norm == "layer" else [])),
        memory_start=one_of("empty", "zeros"),
        adaptive_span=position != "legacy" and draw(st.booleans()),
        span_ramp=2,
        span_trim=one_of(1, 2),
        context_dim=one_of(None, CONTEXT_DIM),
    )
    return Variant(
        config=config,
        batch=draw(st.integers(1, 3)),
        time=draw(st.integers(1, 14)),
        seed=draw(st.integers(0, 10_000)),
        rows_differ=draw(st.booleans()),
        recompute=draw(st.booleans()),
    )
