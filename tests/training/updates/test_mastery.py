import json

from feedback_transformer_pytorch.training.updates.mastery import Mastery


def lengths(curriculum: Mastery, accuracies: list[float]) -> list[int]:
    found = []
    for accuracy in accuracies:
        curriculum.observe({"accuracy": 0.0, "accuracy_last": accuracy})
        found.append(curriculum.length)
    return found


def test_sequences_grow_only_when_the_running_accuracy_is_high() -> None:
    curriculum = Mastery(first=2, longest=32, threshold=0.9, growth=1.25)
    assert lengths(curriculum, [0.85] * 200) == [2] * 200
    assert lengths(curriculum, [1.0] * 100)[-1] == 32


def test_sequences_grow_by_one_or_the_factor_up_to_the_longest() -> None:
    curriculum = Mastery(first=2, longest=20, threshold=1e-9, growth=1.5)
    assert lengths(curriculum, [1.0] * 8) == [3, 4, 6, 9, 13, 19, 20, 20]


def test_lengths_end_where_segments_end() -> None:
    curriculum = Mastery(first=4, longest=32, threshold=1e-9, growth=1.25, multiple_of=4)
    assert lengths(curriculum, [1.0] * 8) == [8, 12, 16, 20, 24, 28, 32, 32]


def test_another_curriculum_goes_on_exactly() -> None:
    first, second = (Mastery(first=2, longest=64, threshold=0.8, growth=1.25) for _ in range(2))
    lengths(first, [1.0] * 20)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.length == first.length > 2
    assert lengths(first, [0.9, 0.7, 1.0] * 5) == lengths(second, [0.9, 0.7, 1.0] * 5)
