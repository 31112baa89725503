import pytest

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.tasks import find_task, task_names

EXAMPLES = {"zN": "z60", "dN": "d14", "sN": "s5", "aN": "a5", "mqar-N": "mqar-64"}


@pytest.mark.parametrize("name", [EXAMPLES.get(name, name) for name in task_names()])
def test_a_task_has_the_name_that_finds_it(name: str) -> None:
    assert find_task(name).name == name


@pytest.mark.parametrize("name", ["", "S3", "s", "copy ", "mqar-", "s0", "q5", "algorithmic-4", "mqar-" + "9" * 99])
def test_an_unknown_name_is_refused_with_all_that_are_known(name: str) -> None:
    with pytest.raises(InputError) as caught:
        find_task(name)
    message = str(caught.value)
    assert message.startswith(f"task is {name!r}; it must be one of")
    assert ", ".join(task_names()) in message


@pytest.mark.parametrize(("name", "reason"), [("s9", "the number after s must be 2 to 5"), ("mqar-7", "N is even")])
def test_a_number_that_a_pattern_does_not_take_is_refused_with_those_it_takes(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        find_task(name)
