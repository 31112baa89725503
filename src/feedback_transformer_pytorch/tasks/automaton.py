"""A finite automaton, run on many sequences at a time."""

from __future__ import annotations

import numpy as np

from .task import Integers


def run_automaton(transitions: Integers, inputs: Integers, *, start: int) -> Integers:
    """Return the state after each input, (B, T).

    Args:
        transitions: (number of inputs, number of states); entry [input, state] is the next state.
        inputs: (B, T).
        start: the state before the first input.
    """
    states = np.empty_like(inputs)
    state = np.full(len(inputs), start)
    for t in range(inputs.shape[1]):
        state = states[:, t] = transitions[inputs[:, t], state]
    return states
