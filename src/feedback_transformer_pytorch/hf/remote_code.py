"""The file that a saved model carries, so that `trust_remote_code=True` finds its classes in this package."""

from __future__ import annotations

from collections.abc import Mapping

FILE = "modeling_feedback_transformer.py"

CLASSES: Mapping[str, str] = {
    "AutoConfig": "FeedbackTransformerConfig",
    "AutoModel": "FeedbackTransformerModel",
    "AutoModelForCausalLM": "FeedbackTransformerForCausalLM",
}

# `transformers` looks for missing packages among the imports outside of `try`, and would name the module to install.
SOURCE = '''"""The classes of this model, which are those of feedback-transformer-pytorch."""

try:
    from feedback_transformer_pytorch.hf import (
        FeedbackTransformerConfig,
        FeedbackTransformerForCausalLM,
        FeedbackTransformerModel,
    )
except ImportError as error:
    raise ImportError(
        "this model needs a package that cannot be imported; install feedback-transformer-pytorch 0.1 with the extra "
        "hf from its source or a wheel (PyPI has only 0.0.11)"
    ) from error
'''


def auto_map() -> dict[str, str]:
    """For each Auto class, where `transformers` finds ours."""
    return {auto: f"{FILE.removesuffix('.py')}.{name}" for auto, name in CLASSES.items()}
