"""Text that comes in pieces, up to the first of some stop texts."""

from __future__ import annotations

from collections.abc import Sequence


class UntilStop:
    """Passes text on until one of the stop texts, which is held back, as is what may be the beginning of one.

    Attributes:
        found: whether a stop text has come.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = list(stops), ""
        self.found = False

    def push(self, text: str) -> str:
        """Takes a piece of text and returns what can be passed on of it and of what was held back."""
        if self.found:
            return ""
        text = self._held + text
        places = [place for place in map(text.find, self._stops) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        lengths = (length for stop in self._stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
        end = len(text) - max(lengths, default=0)
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Returns what was held back: no stop text came of it."""
        held, self._held = self._held, ""
        return held
