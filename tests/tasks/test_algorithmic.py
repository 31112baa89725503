import operator
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from checks import assert_frequencies, digest, in_words

from feedback_transformer_pytorch.tasks import Labelled, SequenceTask, StreamTask
from feedback_transformer_pytorch.tasks.algorithmic import AlgorithmicTask

THREE, FIVE = AlgorithmicTask("xyz"), AlgorithmicTask("xyzpr")
# Of the stream for validation. The data of a task never changes: results with other data cannot be compared.
DIGESTS = {"algorithmic-3": "2e7784d0e75b5ad7", "algorithmic-5": "9355b767ec90c19e"}
COMPARE = {"<": operator.lt, ">": operator.gt}


@pytest.fixture(scope="module", params=[THREE, FIVE], ids=lambda task: task.name)
def task(request: pytest.FixtureRequest) -> AlgorithmicTask:
    return request.param


@pytest.fixture(scope="module")
def stream(task: AlgorithmicTask) -> Labelled:
    return task.stream("validation")


@pytest.fixture(scope="module")
def programs(task: AlgorithmicTask, stream: Labelled) -> list[str]:
    words = " ".join(task.words[token] for token in stream.tokens)
    *programs, rest = re.split(r" ?END ?", words)
    assert not rest
    return programs


class Interpreter:
    """Executes the text of a program; refuses what the rules forbid."""

    def __init__(self, names: str) -> None:
        self.names = names
        self.values: dict[str, int] = {}

    def run(self, program: str) -> Iterator[list[str | None]]:
        """The labels of each statement, and of END."""
        statements = re.findall(r"[^;]+;", program)
        assert len(statements) == 100
        for statement in map(str.strip, statements):
            labels: list[str | None] = [None] * len(statement.split())
            if match := re.fullmatch("print ([a-z]) ;", statement):
                labels[-1] = str(self.values[match[1]])
            else:
                self.execute(statement)
            yield labels
        yield [None]

    def execute(self, statement: str, acts: bool = True) -> None:
        if match := re.fullmatch("if ([a-z]) ([<>]) ([a-z]|[0-9]+) : ((?!if|print).*)", statement):
            name, comparison, other, inner = match.groups()
            assert name != other
            number = self.values[other] if other.isalpha() else int(other)
            assert 1 <= number <= 10
            self.execute(inner, COMPARE[comparison](self.values[name], number))
            return
        name, rest = statement.split(" ", 1)
        assert name in self.names
        if match := re.fullmatch("= ([0-9]+) ;", rest):
            assert name not in self.values
            value = int(match[1])
        else:
            value = self.values[name] + {"++ ;": 1, "-- ;": -1}[rest]
        assert 1 <= value <= 10
        if acts:
            self.values[name] = value


def test_the_interface(task: AlgorithmicTask) -> None:
    assert isinstance(task, StreamTask)
    assert not isinstance(task, SequenceTask)
    assert len(set(task.words)) == len(task.words)


def test_labels_are_what_the_programs_print(task: AlgorithmicTask, stream: Labelled, programs: list[str]) -> None:
    names = "".join(task.words[: int(task.name[-1])])
    found = [label for program in programs for labels in Interpreter(names).run(program) for label in labels]
    assert in_words(task, stream.labels) == found


def test_programs_have_the_published_size(stream: Labelled, programs: list[str]) -> None:
    assert len(programs) == 1000
    assert stream.tokens.shape == stream.labels.shape
    assert stream.tokens.dtype == stream.labels.dtype == np.int64
    assert len(stream.tokens) / len(programs) == pytest.approx(432, abs=1.5)
    assert (stream.labels >= 0).sum() / len(programs) == pytest.approx(25.5, abs=0.6)


def test_frequencies(task: AlgorithmicTask, programs: list[str]) -> None:
    text = " ".join(programs)
    words = Counter(text.split())
    assert_frequencies([words["print"], words["if"]])
    assert_frequencies([words["++"], words["--"]])
    assert_frequencies([words["<"], words[">"]])
    started = Counter(re.findall(r"([a-z]) = [0-9]+ ;", " ".join(program[:9] for program in programs)))
    assert_frequencies(started[name] for name in task.words[: int(task.name[-1])])
    values = Counter(re.findall("= ([0-9]+) ;", text))
    assert_frequencies(values[str(value)] for value in range(1, 11))
    late = " ".join(" ".join(program.split(";")[50:]) for program in programs)  # all names have values
    others = Counter(re.findall("[<>] ([a-z]|[0-9]+) :", late))
    assert_frequencies([sum(others[name] for name in "xyzpr"), sum(others[str(number)] for number in range(1, 11))])
    assert_frequencies(others[str(number)] for number in range(1, 11))
    printed = Counter(re.findall("print ([a-z])", late))
    assert_frequencies(printed[name] for name in task.words[: int(task.name[-1])])


def test_the_data_never_changes(task: AlgorithmicTask, stream: Labelled) -> None:
    assert digest(stream) == DIGESTS[task.name]


def test_parts_differ(task: AlgorithmicTask, stream: Labelled) -> None:
    assert (task.stream("test").tokens[:500] != stream.tokens[:500]).any()
