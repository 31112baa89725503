"""A decoder that reads short pieces of a text with a walk that was set up once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..decoder import FeedbackDecoder
from ..generation.steps import is_plain_decoder, start_walk, walk_segments
from ..recurrence import Incremental, adapter_settings, is_called_plainly, select_rows
from .reading import Progress

# Tokens of the longest piece. A longer one is worth a walk of its own, which sets up its buffers for it.
LONGEST = 16


class TokenWalk:
    """Reads on like `read_on`, with the same states up to rounding, for as long as `fits` says so.

    A walk holds copies of the weights, packed, so each piece must be read with the weights, the modules and the types
    of the first. Gradients are not known to it. Weights are compared by their address and by how often torch counted a
    change of them, which it does not where numbers of `weight.data` are changed in place.
    """

    def __init__(self, decoder: FeedbackDecoder, x: Tensor, walk: Incremental, tail: Tensor | None) -> None:
        self._decoder, self._walk, self._tail = decoder, walk, tail
        self._modules = list(decoder.modules())
        self._in_inference_mode = torch.is_inference_mode_enabled()
        self._setting = self._describe(x)

    @classmethod
    def start(cls, decoder: FeedbackDecoder, x: Tensor, progress: Progress) -> TokenWalk | None:
        """Goes on after what was read, for pieces like x (B, T, D); None where only `read_on` does."""
        if x.shape[1] > LONGEST or torch.is_grad_enabled() or progress.tail_mask is not None:
            return None
        if torch.compiler.is_compiling() or progress.requires_grad:
            return None
        if not is_plain_decoder(decoder) or any(p.is_inference() for p in decoder.parameters()):
            return None
        walk = start_walk(decoder, x, progress.memory)
        return None if walk is None else cls(decoder, x, walk, progress.tail)

    @property
    def progress(self) -> Progress:
        """What was read."""
        return Progress(self._walk.memory, self._tail)

    @property
    def like(self) -> Tensor:
        """(B, 0, D), of the type and on the device of what it reads."""
        return self._walk.like

    def fits(self, decoder: FeedbackDecoder, x: Tensor) -> bool:
        """Whether a piece x (B, T, D) can be read."""
        return (
            decoder is self._decoder
            and x.shape[0] == self.like.shape[0]
            and x.shape[1] <= LONGEST
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and is_plain_decoder(decoder)
            and self._setting == self._describe(x)
        )

    @property
    def can_select(self) -> bool:
        """Whether rows can be chosen: in place, only in the mode of inference in which it was set up."""
        return self._in_inference_mode == torch.is_inference_mode_enabled()

    def _describe(self, x: Tensor) -> tuple[Any, ...]:
        """What must not change from piece to piece."""
        device = x.device.type
        return (
            x.dtype,
            x.device,
            torch.is_inference_mode_enabled(),
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
            self._decoder.config,
            self._decoder.implementation,
            [_held(module) for module in self._modules],
        )

    def read(self, x: Tensor) -> Tensor:
        """Reads a piece (B, T, D); returns states (B, T, D)."""
        length = x.shape[1]
        if self._tail is not None:
            x = torch.cat([self._tail, x], dim=1)
        seq_len = self._decoder.config.seq_len
        states = torch.cat(list(walk_segments(self._walk, x, seq_len)), dim=1)
        rest = x.shape[1] % seq_len
        self._tail = x[:, -rest:].clone() if rest else None
        normed: Tensor = self._decoder.norm(states[:, -length:])
        return normed

    def select(self, rows: Tensor) -> None:
        """Goes on with the rows (B',) named by index, in that order."""
        self._walk.select(rows)
        self._tail = select_rows(self._tail, rows)


def _held(module: nn.Module) -> tuple[Any, ...]:
    """What a walk reads of a module, and whether it calls anything of somebody else. Parameters stand for themselves
    with how often each was changed in place."""
    parameters = [(id(p), p.data_ptr(), _version(p)) for p in module._parameters.values() if p is not None]
    settings = module.training, getattr(module, "eps", None), is_called_plainly(module), adapter_settings(module)
    return *settings, list(map(id, module._modules.values())), parameters


def _version(parameter: Tensor) -> int | None:
    """How often torch counted a change in place; None where it does not count, as for tensors of inference mode."""
    return None if parameter.is_inference() else parameter._version
