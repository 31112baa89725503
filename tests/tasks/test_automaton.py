import numpy as np

from feedback_transformer_pytorch.tasks.automaton import run_automaton


def test_a_lift_between_three_floors() -> None:
    down, up = 0, 1
    transitions = np.array([[0, 0, 1], [1, 2, 2]])
    inputs = np.array([[up, up, up, down], [down, down, up, down]])
    assert run_automaton(transitions, inputs, start=1).tolist() == [[2, 2, 2, 1], [0, 0, 1, 0]]


def test_no_sequences() -> None:
    assert run_automaton(np.array([[0]]), np.empty((0, 3), np.int64), start=0).shape == (0, 3)
