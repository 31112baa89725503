"""The weights of a model with another number of memory slots."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import InputError
from ..options import TrainOptions


def with_mem_len(weights: Mapping[str, Tensor], options: TrainOptions, mem_len: int) -> dict[str, Tensor]:
    """The weights of the same function with `mem_len` memory slots instead of those of the options.

    Adaptive spans keep their length in tokens, as far as there are slots. Of a vector for each distance, the first ones
    are kept.

    Raises:
        InputError: a position was learned for each distance, and there are more slots than it knows.
    """
    trained = options.mem_len
    if options.position == "learned" and mem_len > trained:
        raise InputError(
            f"--mem-len is {mem_len}; the model was trained with --position learned, a vector for each distance, and "
            f"--mem-len {trained}: give at most {trained}"
        )
    changed = dict(weights)
    for name, tensor in weights.items():
        if options.position == "learned" and name.endswith("position.vectors.weight"):
            changed[name] = tensor[: tensor.shape[0] - trained + mem_len].clone()
        elif name.endswith("span.ratio"):
            changed[name] = (tensor * (trained / mem_len)).clamp(max=1)
    return changed
