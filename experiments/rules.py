"""What simple rules get right in the algorithmic tasks. A model that gets less has not learned to execute programs.

python experiments/rules.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from feedback_transformer_pytorch.tasks import find_task

STEPS = {"++": 1, "--": -1}


def last_assigned(task: str) -> float:
    """The share of prints whose value is the one that the variable was assigned last."""
    return _share(task, counts=False)


def counted(task: str) -> float:
    """The share of prints that are right if each `++` and `--` counts, except those under a condition."""
    return _share(task, counts=True)


def _share(name: str, *, counts: bool) -> float:
    values: dict[str, int] = {}
    right = []
    for statement, label in _statements(name):
        match statement:
            case ["END"]:
                values = {}
            case ["print", variable, ";"]:
                right.append(str(values[variable]) == label)
            case [*_, variable, "=", value, ";"]:
                values[variable] = int(value)
            case [variable, "++" | "--" as step, ";"] if counts:
                values[variable] += STEPS[step]
    return sum(right) / len(right)


def _statements(name: str) -> Iterator[tuple[Sequence[str], str | None]]:
    """The statements of the test programs, each with its label."""
    task = find_task(name)
    part = task.stream("test")
    statement: list[str] = []
    for token, label in zip(part.tokens, part.labels, strict=True):
        statement.append(task.words[token])
        if statement[-1] in (";", "END"):
            yield statement, task.words[label] if statement[0] == "print" else None
            statement = []


if __name__ == "__main__":
    for name in ("algorithmic-3", "algorithmic-5"):
        print(f"{name}: last assigned {last_assigned(name):.1%}, counted {counted(name):.1%}")
