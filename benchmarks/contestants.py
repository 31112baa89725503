"""Who is measured, each built for a shape."""

from __future__ import annotations

import dataclasses
from typing import cast, get_args

from torch import nn

from feedback_transformer_pytorch import FeedbackTransformer
from feedback_transformer_pytorch.baselines import ParallelTransformer, TransformerXL
from feedback_transformer_pytorch.decoder import Implementation
from reference import load_reference
from shapes import Shape

BASELINES = {"parallel": ParallelTransformer, "transformer-xl": TransformerXL}
IMPLEMENTATIONS = tuple(name for name in get_args(Implementation) if name != "auto")
# The fused walk with position "relative"; all others have the bias of the shape's configuration.
RELATIVE = "fused-relative"
CONTESTANTS = ("reference", *IMPLEMENTATIONS, RELATIVE, *BASELINES)


def takes_part(name: str, shape: Shape) -> bool:
    """Whether the contestant can be built for the shape; 0.0.11 has as many key/value heads as heads."""
    return name != "reference" or shape.kv_heads is None


def build(name: str, shape: Shape) -> nn.Module:
    """A freshly initialised model in float32.

    Raises:
        ReferenceUnavailable: version 0.0.11 is asked for and cannot be had.
    """
    if name == "reference":
        return load_reference()(
            num_tokens=shape.num_tokens,
            dim=shape.dim,
            depth=shape.depth,
            mem_len=shape.mem_len,
            seq_len=shape.seq_len,
            heads=shape.heads,
            dim_head=shape.dim_head,
        )
    if name in BASELINES:
        return BASELINES[name].from_config(shape.config)
    if name == RELATIVE:
        return FeedbackTransformer.from_config(dataclasses.replace(shape.config, position="relative"))
    return FeedbackTransformer.from_config(shape.config, implementation=cast(Implementation, name))
