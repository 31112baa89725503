"""Options of variants of the model, for the tests of training."""

from typing import Any

# The paper's model, and others that differ from the defaults in all that training has to do with.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {
        "seq_len": 1,
        "position": "learned",
        "kv": "per_layer",
        "memory_norm": "layer",
        "feedforward": "relu",
        "feedforward_dim": 24,
        "output_bias": False,
        "carry": "state",
        "memory_start": "zeros",
        "adaptive_span": True,
        "span_init": 0.3,
        "span_ramp": 3,
        "span_trim": 4,
        "initialisation": "authors",
    },
    "post-norm": {"norm": "post", "position": "t5", "stored": "top", "carry": "state", "output_bias": False},
    "zeros as keys": {"kv": "per_layer", "memory_norm": "layer", "memory_start": "zeros", "stored": 1},
    "spans as keys": {"adaptive_span": True, "span_init": 0.2, "span_ramp": 3, "memory_norm": "layer"},
}
