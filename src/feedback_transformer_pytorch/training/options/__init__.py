"""The options of the commands."""

from .presets import preset_file as preset_file
from .presets import preset_names as preset_names
from .tokenizer import TokenizerOptions as TokenizerOptions
from .train import TRACKERS as TRACKERS
from .train import Decay as Decay
from .train import Model as Model
from .train import Strategy as Strategy
from .train import TrainOptions as TrainOptions
from .trained import EvalOptions as EvalOptions
from .trained import ExportOptions as ExportOptions
from .trained import GenerateOptions as GenerateOptions
from .trained import InspectOptions as InspectOptions
from .trained import LmEvalOptions as LmEvalOptions
from .trained import PlotOptions as PlotOptions
