import math
from typing import Any, Literal

import pytest

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.objective import ACCURACY, BITS_PER_BYTE
from feedback_transformer_pytorch.training.reporting.plots import by_position_png, comparison_png, curves_png

PNG = b"\x89PNG\r\n\x1a\n"


def metrics(*, rate: float = 1.0) -> list[dict[str, Any]]:
    """A run of three updates that learns at this rate."""
    records: list[dict[str, Any]] = [{"kind": "xz", "alone": 2.0, "after_training": None}]
    for update in range(1, 4):
        progress = {"update": update, "tokens": 64 * update, "seconds": 0.5 * update}
        records.append({"kind": "train", **progress, "bits_per_byte": 8 / (1 + rate * update)})
    return [*records, {"kind": "validation", **progress, "bits_per_byte": 3.0}]


def without(key: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != key} for record in records]


@pytest.mark.parametrize("after_training", [1.4, None])
def test_curves_are_a_picture(after_training: float | None) -> None:
    metrics = [
        {"kind": "xz", "alone": 2.0, "after_training": after_training},
        {"kind": "train", "update": 1, "bits_per_byte": 8.0},
        {"kind": "train", "update": 2, "bits_per_byte": 4.0},
        {"kind": "validation", "update": 2, "bits_per_byte": 3.0},
    ]
    assert curves_png(metrics, title="run", metric=BITS_PER_BYTE).startswith(PNG)


def test_a_name_with_dollars_is_no_formula() -> None:
    name = r"$\frac$"
    assert curves_png(metrics(), title=name, metric=BITS_PER_BYTE).startswith(PNG)
    assert comparison_png([(name, metrics())], x="update", metric=BITS_PER_BYTE).startswith(PNG)
    assert by_position_png([0.5, 1.0], title=name, metric=ACCURACY).startswith(PNG)


def test_a_name_need_not_be_utf8() -> None:
    name = "caf\udce9"
    assert curves_png(metrics(), title=name, metric=BITS_PER_BYTE).startswith(PNG)
    assert comparison_png([(name, metrics())], x="update", metric=BITS_PER_BYTE).startswith(PNG)
    assert by_position_png([0.5, 1.0], title=name, metric=ACCURACY).startswith(PNG)


def test_a_name_with_an_underscore_at_its_start_is_in_the_legend() -> None:
    pictures = {comparison_png([(name, metrics())], x="update", metric=BITS_PER_BYTE) for name in ("_RUN", "_OTHER")}
    assert len(pictures) == 2


def test_there_may_be_nothing_to_draw_yet() -> None:
    assert curves_png([], title="run", metric=BITS_PER_BYTE).startswith(PNG)


def test_layer_weights_have_a_panel_of_their_own() -> None:
    plain, weighted = metrics(), metrics()
    for record in weighted:
        if record["kind"] == "train":
            record["layer_weights"] = [0.5, 0.3, 0.2]
    picture = curves_png(weighted, title="run", metric=BITS_PER_BYTE)
    assert height(picture) > height(curves_png(plain, title="run", metric=BITS_PER_BYTE))


@pytest.mark.parametrize("x", ["update", "tokens", "seconds"])
def test_a_comparison_is_a_picture(x: Literal["update", "tokens", "seconds"]) -> None:
    runs = [("slow", metrics(rate=0.5)), ("fast", metrics(rate=2.0)), ("not begun", [])]
    assert comparison_png(runs, x=x, metric=BITS_PER_BYTE).startswith(PNG)


def test_each_run_changes_the_comparison() -> None:
    slow, fast = ("run", metrics(rate=0.5)), ("run", metrics(rate=2.0))
    pictures = [
        comparison_png(runs, x="tokens", metric=BITS_PER_BYTE) for runs in ([slow], [fast], [slow, fast], [fast, slow])
    ]
    assert len(set(pictures)) == 4


@pytest.mark.parametrize("x", ["tokens", "seconds"])
def test_a_run_without_what_to_draw_over_is_named(x: Literal["tokens", "seconds"]) -> None:
    runs = [("new", metrics()), ("old", without(x, metrics()))]
    with pytest.raises(InputError, match=f"^old: a line of metrics.jsonl has no number as '{x}'; resume the run, "):
        comparison_png(runs, x=x, metric=BITS_PER_BYTE)
    assert comparison_png(runs, x="update", metric=BITS_PER_BYTE).startswith(PNG)


def height(png: bytes) -> int:
    """In pixels: the second number of the header that comes first in a PNG."""
    return int.from_bytes(png[20:24], "big")


def test_a_validation_that_is_not_finite_leaves_the_picture_to_the_others() -> None:
    records = [{"kind": "validation", "update": update, "bits_per_byte": math.nan} for update in (10, 20)]
    assert curves_png([*metrics(), *records], title="run", metric=BITS_PER_BYTE).startswith(b"\x89PNG")


def test_an_interval_without_a_label_is_left_out() -> None:
    records = [{"kind": "train", "update": 1, "accuracy": 0.5}, {"kind": "train", "update": 2}]
    assert curves_png(records, title="run", metric=ACCURACY) == curves_png(records[:1], title="run", metric=ACCURACY)
    pictures = [comparison_png([("run", part)], x="update", metric=ACCURACY) for part in (records, records[:1])]
    assert pictures[0] == pictures[1]


def test_a_figure_that_is_no_number_is_named() -> None:
    records = [{"kind": "train", "update": 1, "accuracy": "high"}]
    with pytest.raises(InputError, match="^run: a line of metrics.jsonl has no number as 'accuracy'"):
        comparison_png([("run", records)], x="update", metric=ACCURACY)


def test_a_metric_against_position_is_a_picture() -> None:
    values = [1.0, None, 0.5], [1.0, 0.5, None]
    pictures = {
        by_position_png(given, title="run", metric=metric) for given in values for metric in (ACCURACY, BITS_PER_BYTE)
    }
    assert all(picture.startswith(PNG) for picture in pictures)
    assert len(pictures) == 4
