"""Registers the classes with `transformers`."""

from __future__ import annotations

import sys

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration import FeedbackTransformerConfig as FeedbackTransformerConfig
from .modeling import FeedbackTransformerForCausalLM as FeedbackTransformerForCausalLM
from .modeling import FeedbackTransformerModel as FeedbackTransformerModel

AutoConfig.register(FeedbackTransformerConfig.model_type, FeedbackTransformerConfig, exist_ok=True)
AutoModel.register(FeedbackTransformerConfig, FeedbackTransformerModel, exist_ok=True)
AutoModelForCausalLM.register(FeedbackTransformerConfig, FeedbackTransformerForCausalLM, exist_ok=True)
# `transformers serve` asks no Auto class. It looks a model's class up by name in `transformers`, as it imported it.
if serving := sys.modules.get("transformers.cli.serving.model_manager"):
    serving.transformers.FeedbackTransformerForCausalLM = FeedbackTransformerForCausalLM
