"""The tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import InputError
from .algorithmic import AlgorithmicTask
from .arithmetic import ArithmeticTask, BracketedArithmeticTask
from .copying import CopyTask
from .counting import CountTask
from .groups import GROUP_NAME, GroupTask
from .mqar import MQAR_NAME, MqarTask
from .random_walk import RandomWalkTask
from .task import Task

_TASKS: dict[str, Callable[[], Task]] = {
    "mod5-arithmetic": ArithmeticTask,
    "mod5-arithmetic-brackets": BracketedArithmeticTask,
    "algorithmic-3": lambda: AlgorithmicTask("xyz"),
    "algorithmic-5": lambda: AlgorithmicTask("xyzpr"),
    "random-walk": RandomWalkTask,
    "copy": lambda: CopyTask(reverse=False),
    "reverse": lambda: CopyTask(reverse=True),
    "count": CountTask,
    "mqar": MqarTask,
}


def find_task(name: str) -> Task:
    """Return the task of this name.

    Raises:
        InputError: there is none.
    """
    if name in _TASKS:
        return _TASKS[name]()
    if GROUP_NAME.fullmatch(name):
        return GroupTask(name)
    if MQAR_NAME.fullmatch(name):
        return MqarTask(name)
    raise InputError(
        f"task is {name!r}; it must be one of {', '.join(task_names())}, where N is a number: for example s3 or mqar-64"
    )


def task_names() -> list[str]:
    """Return the names that `find_task` knows, where N stands for numbers."""
    return ["zN", "dN", "sN", "aN", *_TASKS, "mqar-N"]
