"""How long the blocks of a training run are: short ones first, if asked for."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import InputError


class Stage(NamedTuple):
    """From update `first` on, counted from 0, blocks of `block_len` tokens."""

    first: int
    block_len: int


def stages(block_len: int, first_block_len: int | None = None, curriculum_updates: int = 0) -> list[Stage]:
    """The stages of a run whose last has blocks of `block_len`.

    With `first_block_len`, blocks double from there, each stage an equal part of the first `curriculum_updates`.

    Raises:
        InputError: `first_block_len` is not below `block_len`, or there are fewer updates than stages.
    """
    if first_block_len is None:
        return [Stage(0, block_len)]
    if not 1 <= first_block_len < block_len:
        raise InputError(f"--first-block-len is {first_block_len}; it must be below --block-len {block_len}")
    lengths = [first_block_len]
    while 2 * lengths[-1] < block_len:
        lengths.append(2 * lengths[-1])
    if curriculum_updates < len(lengths):
        raise InputError(
            f"--curriculum-updates is {curriculum_updates}; to double blocks from --first-block-len {first_block_len} "
            f"to --block-len {block_len} it must be at least {len(lengths)}"
        )
    found = [Stage(curriculum_updates * place // len(lengths), length) for place, length in enumerate(lengths)]
    return [*found, Stage(curriculum_updates, block_len)]
