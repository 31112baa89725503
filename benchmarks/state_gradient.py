"""An experiment: a clamp on the gradient of what the memory stores, at every step of the backward pass.

M2RNN, a recurrent network with a matrix as its state, limits every element of its state's gradient to [-1, 1] in each
step of its backward recurrence, before the gradient goes on to the step before. So what reaches a state from the
future cannot grow without bound, while a clip of the whole gradient's norm only scales down what has grown already.

The state of the Feedback Transformer is the vector that a segment writes to the memory. Its gradient gathers what all
later queries in its window send back, and goes on to all earlier states through the layers that made it.

The loss is a mean over B*T places. So a state's gradient is of the order of 1/(B*T) of that of a loss that is a sum
(for B 64 and T 32: 1/2048), and a limit of 1 may never be reached. Smaller limits are worth a try.
"""

from __future__ import annotations

from torch import Tensor

from feedback_transformer_pytorch import FeedbackTransformer


class StateGradientClamp:
    """Limits every element of the gradient of each stored state to [-limit, limit]; the outputs stay the same.

    The model takes the stepwise implementation from then on, which autograd differentiates step by step. It is slower
    than the fused one.
    """

    def __init__(self, model: FeedbackTransformer, limit: float) -> None:
        self._limit, self._mix = limit, model.decoder.stack.mix
        self._elements = self._limited = 0
        model.decoder.stack.mix = self._mix_with_clamp
        model.implementation = "stepwise"

    @property
    def share(self) -> float:
        """The share of all elements so far that were limited."""
        return self._limited / max(1, self._elements)

    def _mix_with_clamp(self, states: list[Tensor]) -> Tensor:
        mixed = self._mix(states)
        if mixed.requires_grad:
            mixed.register_hook(self._clamp)
        return mixed

    def _clamp(self, gradient: Tensor) -> Tensor:
        self._elements += gradient.numel()
        self._limited += int((gradient.abs() > self._limit).sum())
        return gradient.clamp(-self._limit, self._limit)
