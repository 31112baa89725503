"""The model in Hugging Face's `transformers`; importing this registers it with the Auto classes."""

from ..errors import MissingExtraError

try:
    import transformers  # noqa: F401
except ImportError as error:
    raise MissingExtraError("transformers", "hf") from error

from .auto import FeedbackTransformerConfig as FeedbackTransformerConfig
from .auto import FeedbackTransformerForCausalLM as FeedbackTransformerForCausalLM
from .auto import FeedbackTransformerModel as FeedbackTransformerModel
from .cache import FeedbackCache as FeedbackCache
from .export import export_run as export_run
