from .config import FeedbackConfig as FeedbackConfig
from .conversion import from_reference as from_reference
from .errors import InputError as InputError
from .errors import MissingExtraError as MissingExtraError
from .generation import generate as generate
from .memory import Memory as Memory
from .model import FeedbackDecoder as FeedbackDecoder
from .model import FeedbackTransformer as FeedbackTransformer
