"""What the package raises when it is given something it cannot use."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input. The text is the user's message: what was given, what is expected, what to do.

    The command line prints it in one line and exits with 2.
    """


class DivergedError(InputError):
    """Training diverged: too many updates in a row had a loss or a gradient that was not finite."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"{module} is not installed; it comes with the {extra!r} extra: "
            f"pip install 'feedback-transformer-pytorch[{extra}]'"
        )
