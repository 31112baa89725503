"""Text that a model writes."""

from .beam import Hypothesis as Hypothesis
from .beam import beam_search as beam_search
from .continuation import NO_TOKEN as NO_TOKEN
from .continuation import Continuation as Continuation
from .continuation import ContinuationState as ContinuationState
from .continuation import generate as generate
from .reader import Model as Model
from .reader import Reader as Reader
from .reader import ReaderState as ReaderState
from .sampling import Sampling as Sampling
from .state_file import load_state as load_state
from .state_file import save_state as save_state
from .weights import Weights as Weights
from .weights import round_weights as round_weights
