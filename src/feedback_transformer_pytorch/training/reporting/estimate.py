"""How long a run will take, said after its first updates."""

from __future__ import annotations

import time
from datetime import timedelta

from ..options import TrainOptions
from ..schema import flag

# The first update is not counted: it compiles, allocates and warms up.
UPDATES = 4
SHORT = 60  # seconds of a run about which nothing is said
LONG = 4 * 3600  # seconds above which a hint is given
SMALLER = ("max_updates", "dim", "depth", "batch_size", "block_len")


class Estimate:
    """Measures the first updates of a run, or of what is left of it."""

    def __init__(self, options: TrainOptions, first: int) -> None:
        """Sets up; `first` is the number of updates that were done before."""
        self._options, self._first = options, first
        self._began = 0.0

    def after(self, update: int) -> str | None:
        """What to say after an update, which is something once at most."""
        if update == self._first + 1:
            self._began = time.perf_counter()
        if update != self._first + UPDATES:
            return None
        passed = time.perf_counter() - self._began
        return in_words(passed / (UPDATES - 1) * (self._options.max_updates - update), self._options)


def in_words(seconds: float, options: TrainOptions) -> str | None:
    """The time that is left in words, None if it is short."""
    if seconds < SHORT:
        return None
    grows = options.first_block_len is not None
    text = f"about {timedelta(seconds=round(seconds))} of training are left{', more as blocks grow' if grows else ''}"
    if seconds < LONG:
        return text
    *others, last = (f"{flag(name)} {getattr(options, name)}" for name in SMALLER)
    smaller = f"{', '.join(others)} or {last}"
    return f"{text}; for a shorter run choose less than {smaller}, or a larger machine; --preset demo takes minutes"
