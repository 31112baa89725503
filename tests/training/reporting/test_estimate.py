import pytest

from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.reporting import estimate
from feedback_transformer_pytorch.training.reporting.estimate import Estimate, in_words

OPTIONS = TrainOptions(out="run", max_updates=1000)


def test_it_is_made_of_all_updates_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 106.0])
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(times))
    resumed = Estimate(OPTIONS, 400)
    said = [resumed.after(update) for update in range(401, 410)]
    assert said == [*[None] * 3, "about 0:19:52 of training are left", *[None] * 5]  # 596 updates of 2 s


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (59.0, None),
        (90000.0, "about 1 day, 1:00:00 of training are left; for a shorter run choose less than --max-updates 1000"),
    ],
)
def test_a_short_run_needs_none_and_a_long_one_a_hint(seconds: float, said: str | None) -> None:
    found = in_words(seconds, OPTIONS)
    assert (found is None) if said is None else (found is not None and found.startswith(said))


def test_growing_blocks_are_mentioned() -> None:
    growing = TrainOptions(out="run", first_block_len=16, curriculum_updates=10)
    assert in_words(90.0, growing) == "about 0:01:30 of training are left, more as blocks grow"
