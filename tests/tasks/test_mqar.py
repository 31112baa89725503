import numpy as np
import pytest
from checks import assert_frequencies, in_words
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.tasks.mqar import MqarTask

PAPER = MqarTask()


@pytest.mark.parametrize("task", [PAPER, MqarTask("mqar-20")], ids=lambda task: task.name)
@given(length=st.integers(8, 159), seed=st.integers(0, 2**32))
def test_each_key_is_asked_for_once(task: MqarTask, length: int, seed: int) -> None:
    tokens, labels = task.sample(3, length, np.random.default_rng(seed))
    pairs = max(2, length // 16)
    for row, row_labels in zip(tokens, labels, strict=True):
        words, answers = in_words(task, row), in_words(task, row_labels)
        value_of = dict(zip(words[0 : 2 * pairs : 2], words[1 : 2 * pairs : 2], strict=True))
        assert len(value_of) == len(set(value_of.values())) == pairs
        assert answers[: 2 * pairs] == [None] * 2 * pairs
        assert answers[2 * pairs :] == [value_of.get(word) for word in words[2 * pairs :]]
        assert sorted(word for word in words[2 * pairs :] if word != "_") == sorted(value_of)
        assert set("".join(value_of)) <= set("k0123456789")
        assert set("".join(value_of.values())) <= set("v0123456789")


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (128, 8), (256, 16)])
def test_as_many_pairs_as_in_the_paper(length: int, pairs: int) -> None:
    assert len(PAPER.words) == 8192
    _, labels = PAPER.sample(2, length, np.random.default_rng(0))
    assert ((labels >= 0).sum(axis=1) == pairs).all()


def test_keys_and_values_are_equally_likely_everywhere() -> None:
    task = MqarTask("mqar-10")  # 4 keys and 5 values
    tokens, _ = task.sample(10_000, 60, np.random.default_rng(0))
    for i in range(3):
        assert_frequencies(np.bincount(tokens[:, 2 * i])[1:])
        assert_frequencies(np.bincount(tokens[:, 2 * i + 1])[5:])
    orders = tokens[:, [0, 2, 4]] @ [100, 10, 1]
    assert_frequencies(np.unique(orders, return_counts=True)[1])
    assert len(set(orders.tolist())) == 4 * 3 * 2


def test_gaps_follow_a_power_law() -> None:
    """The slots of the first two keys, drawn one after the other by weight without replacement."""
    length, pairs = 40, 2
    slots = (length - 2 * pairs) // 2
    first = np.array([i**-0.99 for i in range(1, slots + 1)])
    first /= first.sum()
    second = [sum(first[i] * first[j] / (1 - first[i]) for i in range(slots) if i != j) for j in range(slots)]
    tokens, _ = PAPER.sample(10_000, length, np.random.default_rng(0))
    for i, probabilities in enumerate((first, second)):
        place = (tokens[:, 2 * pairs :] == tokens[:, [2 * i]]).argmax(axis=1)
        assert not (place % 2).any()
        assert_frequencies(np.bincount(place // 2, minlength=slots), probabilities)


@pytest.mark.parametrize(
    "name", ["mqar-4", "mqar-9", "mqar-0", "mqar-65538", "mqar-", "mqar-8192 ", "mqar-" + "9" * 99]
)
def test_vocabularies_that_cannot_be_split_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"task is '{name}'; it must be mqar, or mqar-N .* even and 6 to 65536"):
        MqarTask(name)


def test_more_pairs_than_keys_are_refused() -> None:
    task = MqarTask("mqar-20")
    assert task.sample(1, 159, np.random.default_rng(0)).tokens.shape == (1, 159)
    with pytest.raises(InputError, match="length is 160, which needs 10 keys; mqar-20 has 9: give at most 159"):
        task.sample(1, 160, np.random.default_rng(0))
