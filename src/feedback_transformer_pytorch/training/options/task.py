"""The check of a task's name, which several commands take."""

from __future__ import annotations

from ...errors import InputError
from ...tasks import find_task


def check_task(name: str) -> None:
    """Refuse an unknown --task.

    Raises:
        InputError: there is no such task.
    """
    try:
        find_task(name)
    except InputError as error:
        raise InputError(f"--task: {error}") from None
