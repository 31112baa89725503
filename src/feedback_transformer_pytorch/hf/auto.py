"""Registers the classes with the Auto classes of `transformers`."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration import FeedbackTransformerConfig as FeedbackTransformerConfig
from .modeling import FeedbackTransformerForCausalLM as FeedbackTransformerForCausalLM
from .modeling import FeedbackTransformerModel as FeedbackTransformerModel

AutoConfig.register(FeedbackTransformerConfig.model_type, FeedbackTransformerConfig, exist_ok=True)
AutoModel.register(FeedbackTransformerConfig, FeedbackTransformerModel, exist_ok=True)
AutoModelForCausalLM.register(FeedbackTransformerConfig, FeedbackTransformerForCausalLM, exist_ok=True)
