import itertools

import numpy as np
import pytest
from checks import assert_frequencies, in_words
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.tasks.groups import GroupTask


@pytest.mark.parametrize("size", [2, 5, 60])
def test_cyclic_groups_add(size: int) -> None:
    table = GroupTask(f"z{size}").table
    assert table.tolist() == [[(a + b) % size for b in range(size)] for a in range(size)]


@pytest.mark.parametrize("size", [6, 14, 24])
def test_dihedral_groups_turn_and_flip(size: int) -> None:
    """An element is x -> turn + sign * x on the corners; in lexicographic order of the images of 0 and 1."""
    corners = size // 2
    elements = sorted(
        ((turn, sign) for turn in range(corners) for sign in (1, -1)),
        key=lambda element: (element[0], sum(element) % corners),
    )
    table = GroupTask(f"d{size}").table
    for (i, (turn, sign)), (j, (turn2, sign2)) in itertools.product(enumerate(elements), repeat=2):
        assert elements[table[i, j]] == ((turn + sign * turn2) % corners, sign * sign2)


@pytest.mark.parametrize(("name", "points"), [("s2", 2), ("s3", 3), ("s4", 4), ("a3", 3), ("a4", 4), ("a5", 5)])
def test_permutations_compose(name: str, points: int) -> None:
    """Against products of permutation matrices, the even ones being those of determinant 1."""
    matrices = [np.eye(points)[:, list(order)] for order in itertools.permutations(range(points))]
    if name.startswith("a"):
        matrices = [matrix for matrix in matrices if np.linalg.det(matrix) > 0]
    elements = np.stack(matrices)
    table = GroupTask(name).table
    assert table.shape == (len(elements), len(elements))
    for a, row in zip(elements, table, strict=True):
        np.testing.assert_array_equal(a @ elements, elements[row])


def test_s3_written_out() -> None:
    task = GroupTask("s3")
    assert task.words == ("012", "021", "102", "120", "201", "210")
    assert task.table.tolist() == [
        [0, 1, 2, 3, 4, 5],
        [1, 0, 4, 5, 2, 3],
        [2, 3, 0, 1, 5, 4],
        [3, 2, 5, 4, 0, 1],
        [4, 5, 1, 0, 3, 2],
        [5, 4, 3, 2, 1, 0],
    ]


@pytest.mark.parametrize(("name", "size"), [("z512", 512), ("d1024", 1024), ("s5", 120), ("a6", 360)])
def test_the_largest_groups(name: str, size: int) -> None:
    task = GroupTask(name)
    assert len(set(task.words)) == size
    assert task.table.shape == (size, size)
    for lines in (task.table, task.table.T):
        assert (np.sort(lines, axis=1) == np.arange(size)).all()


@pytest.mark.parametrize(
    "name", ["s", "x3", "d7", "d4", "z1", "z513", "s6", "a2", "a7", "S3", "s3 ", "z02", "z" + "9" * 99]
)
def test_unknown_groups_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"group is '{name}'"):
        GroupTask(name)


def test_the_message_says_which_sizes_there_are() -> None:
    with pytest.raises(InputError, match="the number after d must be even and 6 to 1024"):
        GroupTask("d7")


def test_words_of_more_than_ten_points() -> None:
    assert GroupTask("d22").words[:2] == ("0,1,2,3,4,5,6,7,8,9,10", "0,10,9,8,7,6,5,4,3,2,1")


@pytest.mark.parametrize("name", ["d14", "s3", "a5", "s5"])
@given(length=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_labels_are_permutations_applied_one_after_another(name: str, length: int, seed: int) -> None:
    task = GroupTask(name)
    [row], [labels] = task.sample(1, length, np.random.default_rng(seed))
    image_of = {point: point for point in task.words[0]}
    for word, label in zip(in_words(task, row), in_words(task, labels), strict=True):
        image_of = {point: word[int(image)] for point, image in image_of.items()}
        assert label == "".join(image_of.values())


@pytest.mark.parametrize("size", [2, 60])
def test_labels_of_cyclic_groups_are_sums(size: int) -> None:
    tokens, labels = GroupTask(f"z{size}").sample(5, 30, np.random.default_rng(0))
    np.testing.assert_array_equal(labels, tokens.cumsum(axis=1) % size)


@pytest.mark.parametrize("name", ["z2", "s3", "a5"])
def test_elements_and_products_are_equally_likely(name: str) -> None:
    task = GroupTask(name)
    tokens, labels = task.sample(2000, 8, np.random.default_rng(0))
    assert_frequencies(np.bincount(tokens.ravel(), minlength=len(task.words)))
    assert_frequencies(np.bincount(labels[:, -1], minlength=len(task.words)))
