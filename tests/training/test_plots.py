import pytest

from feedback_transformer_pytorch.training.plots import curves_png

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("after_training", [1.4, None])
def test_curves_are_a_picture(after_training: float | None) -> None:
    metrics = [
        {"kind": "xz", "alone": 2.0, "after_training": after_training},
        {"kind": "train", "update": 1, "bits_per_byte": 8.0},
        {"kind": "train", "update": 2, "bits_per_byte": 4.0},
        {"kind": "validation", "update": 2, "bits_per_byte": 3.0},
    ]
    assert curves_png(metrics, title="run").startswith(PNG)


def test_there_may_be_nothing_to_draw_yet() -> None:
    assert curves_png([], title="run").startswith(PNG)
