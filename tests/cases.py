"""Random models and inputs, in float64, for the tests that hold for all shapes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from conditioning import Reference
from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer, Memory

NUM_TOKENS = 11
POSITIONS = ["t5", "relative", "legacy"]


@dataclass(frozen=True)
class Case:
    config: FeedbackConfig
    batch: int
    time: int
    memory_slots: int
    seed: int

    def model(self, **options: Any) -> FeedbackTransformer:
        torch.manual_seed(self.seed)
        model = FeedbackTransformer.from_config(self.config, **options).double()
        with torch.no_grad():
            for parameter in model.parameters():  # norms, biases and layer weights too: none may stay at 0 or 1
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return model

    def tokens(self) -> Tensor:
        torch.manual_seed(self.seed + 1)
        return torch.randint(0, NUM_TOKENS, (self.batch, self.time))

    def memory(self) -> Memory | None:
        """Random keys and values; None if the case has no carried memory."""
        if not self.memory_slots:
            return None
        torch.manual_seed(self.seed + 2)
        keys, values = torch.randn(2, self.batch, self.memory_slots, self.config.kv_dim, dtype=torch.float64)
        return Memory(keys, values)

    def flags(self, probability: float, salt: int = 3) -> Tensor:
        """(B, T) bool, True with this probability."""
        torch.manual_seed(self.seed + salt)
        return torch.rand(self.batch, self.time) < probability


@st.composite
def cases(draw: st.DrawFn, **fixed: Any) -> Case:
    """Small models of every kind, with T around the edges of the window."""
    kv_heads = draw(st.integers(1, 2))
    mem_len = draw(st.integers(1, 5))
    fields: dict[str, Any] = {
        "num_tokens": NUM_TOKENS,
        "dim": draw(st.sampled_from([4, 6])),
        "depth": draw(st.integers(1, 3)),
        "mem_len": mem_len,
        "seq_len": draw(st.integers(1, 4)),
        "heads": kv_heads * draw(st.integers(1, 2)),
        "dim_head": draw(st.integers(2, 4)),
        "kv_heads": kv_heads,
        "keep_last_hidden": draw(st.booleans()),
        "norm_memory": draw(st.booleans()),
        "position": draw(st.sampled_from(POSITIONS)),
    }
    fields.update({name: value for name, value in fixed.items() if name in fields})
    edges = [1, mem_len - 1, mem_len, mem_len + 1, 3 * mem_len + 1]
    time = fixed.get("time") or draw(st.one_of(st.sampled_from([t for t in edges if t]), st.integers(1, 16)))
    return Case(
        config=FeedbackConfig(**fields),
        batch=draw(st.integers(1, 3)),
        time=time,
        memory_slots=draw(st.integers(0, mem_len)),
        seed=draw(st.integers(0, 10_000)),
    )


def definition(model: FeedbackTransformer, evaluate: Callable[[], Mapping[str, Tensor]]) -> Reference:
    """What `evaluate` gives where the model is walked by the definition."""

    def stepwise() -> Mapping[str, Tensor]:
        before, model.implementation = model.implementation, "stepwise"
        try:
            return evaluate()
        finally:
            model.implementation = before

    return Reference(model, stepwise)


def named(out: Tensor, memory: Memory) -> dict[str, Tensor]:
    """Output, keys and values, by name."""
    return {"out": out, "keys": memory.keys, "values": memory.values}
