"""Tasks with known answers: random sequences and streams whose positions carry labels."""

from .registry import find_task as find_task
from .registry import task_names as task_names
from .task import IGNORE as IGNORE
from .task import Labelled as Labelled
from .task import Part as Part
from .task import SequenceTask as SequenceTask
from .task import StreamTask as StreamTask
from .task import Task as Task
