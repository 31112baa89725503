from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feedback_transformer_pytorch.model import FeedbackTransformer
from feedback_transformer_pytorch.training.inspection.findings import look
from feedback_transformer_pytorch.training.inspection.passage import passage_of
from feedback_transformer_pytorch.training.inspection.pictures import by_place, pictures, visible
from feedback_transformer_pytorch.training.options import InspectOptions
from feedback_transformer_pytorch.training.saving.run import Run

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("count", [1, 70])
def test_all_are_pictures(make_run: Callable[..., Run], text: Path, count: int) -> None:
    """Also of one token, and of tokens between dollar signs, which are no formulas."""
    run = make_run("bpe")
    chosen = {"run": str(run.path), "out": "look", "text": str(text), "tokens": count}
    passage = passage_of(run, InspectOptions.from_dict(chosen))
    model = run.load_model(passage.num_tokens)
    assert isinstance(model, FeedbackTransformer)
    found = pictures(look(model, passage), r"run: $\frac$.txt")
    assert all(content.startswith(PNG) for content in found.values())
    assert set(found) == {"attention-by-distance.png", "attention-map.png", "memory-mix.png", "bits.png"}


def test_by_place() -> None:
    by_distance = np.array([[0.0, 0.5], [0.1, 0.9], [0.3, 0.7]])
    assert by_place(by_distance).tolist() == [[0.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.7, 0.3]]


def test_white_space_is_visible() -> None:
    assert visible(" a\n\t") == "␣a↵⇥"
