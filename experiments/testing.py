"""What is measured of a trained model besides its validation."""

from __future__ import annotations

from typing import Any

from feedback_transformer_pytorch.training.evaluate import evaluate_run
from feedback_transformer_pytorch.training.options import EvalOptions


def measure(run: str, test: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run.

    Args:
        test: arguments of `eval` for each test, by the test's name; {} for the test stream of the run's task. The
            accuracy by position is kept where the sequences have a length.
    """
    return {
        name: _rounded(evaluate_run(EvalOptions(run=run, **arguments)).to_dict()) for name, arguments in test.items()
    }


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    found = {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}
    positions = figures.get("by_position")
    if positions is not None:
        found["by_position"] = [None if share is None else round(share, 4) for share in positions]
    return found
