"""Ctrl-C and SIGTERM as a request to stop, which the training loop obeys at a safe point."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 (the user's request, not an error)
    """A signal requested a stop."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.signal = received


class StopRequest:
    """A context manager that records the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt at once.

    Only the main thread may handle signals, so in other threads it does nothing.

    Attributes:
        received: the signal that requested a stop; None if there was none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def check(self) -> None:
        """Raises Stopped if a stop was requested."""
        if self.received is not None:
            raise Stopped(self.received)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
