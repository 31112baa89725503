"""The walk without gradients that goes on from call to call: for tokens that come one after another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..memory import Memory, newest
from .applicability import unsupported_reason
from .forward import steps_of
from .plan import Plan, Segment
from .stack import Stack
from .tape import NO_MASKS
from .walk import Walk, WalkSpec, WalkTensors

# Tokens that one walk is set up for: enough to forget what that costs, few enough for its buffers to stay small.
TOKENS_AT_ONCE = 512


class Incremental:
    """Walks segment after segment, each as `fused` would on its own after those before.

    What a call of `fused` sets up for itself, views, buffers, and weights as the compiled kernel reads them, is set up
    once for many segments. The parameters, the mode and the autocast must therefore stay as they are.
    """

    def __init__(self, stack: Stack, like: Tensor, memory: Memory) -> None:
        """Starts behind a memory, all of which is seen, for segments (B, S, D) like a (B, T, D)."""
        self._stack, self._like = stack, like[:, :0].detach()
        self._begin(memory)

    @staticmethod
    def applies(stack: Stack, like: Tensor, memory: Memory) -> bool:
        """Whether it computes what the stack's modules say, and sees all of the memory."""
        dropout = stack.training and (stack.config.attn_dropout > 0 or stack.config.ff_dropout > 0)
        return memory.lengths is None and not dropout and unsupported_reason(stack, like) is None

    @property
    def memory(self) -> Memory:
        """The newest M keys and values (B, n, G*E) up to here."""
        carried = self._plan.carried + self._next * self._plan.seq_len
        keys, values = self._walk.windows.all_keys_values(self._walk.spec.out_dtype, carried)
        return newest(keys, values, self._plan.mem_len)

    def step(self, x: Tensor) -> Tensor:
        """A whole segment (B, S, D) to its top states (B, S, D); it enters the memory.

        Raises:
            InputError: x is not like the one at the start, or no whole segment.
        """
        self._check(x, self._plan.seq_len)
        states = self._walk_to_top(x)
        self._next += 1
        return states

    def peek(self, x: Tensor) -> Tensor:
        """The beginning (B, 1 <= s <= S, D) of a segment to its top states (B, s, D); it leaves no trace.

        Raises:
            InputError: x is not like the one at the start, or longer than a segment.
        """
        self._check(x, 1)
        return self._walk_to_top(x)

    def _check(self, x: Tensor, shortest: int) -> None:
        like, seq_len = self._like, self._plan.seq_len
        fits = x.shape[0] == like.shape[0] and shortest <= x.shape[1] <= seq_len and x.shape[2:] == like.shape[2:]
        if not fits or x.dtype != like.dtype or x.device != like.device:
            raise InputError(
                f"x is {x.dtype} {tuple(x.shape)} on {x.device}; it must be {like.dtype} (batch={like.shape[0]}, "
                f"{shortest} to seq_len={seq_len}, dim={like.shape[2]}) on {like.device}, as at the start"
            )

    @torch.no_grad()
    def _walk_to_top(self, x: Tensor) -> Tensor:
        if self._next == len(self._plan.segments):
            self._begin(self.memory)
        batch, length = x.shape[:2]
        start = self._next * self._plan.seq_len
        segment = Segment(self._next, start, length, slice(start * batch, (start + length) * batch))
        if length not in self._states:
            self._states[length] = self._like.new_empty(self._stack.config.depth + 1, batch * length, x.shape[2])
        state = self._states[length]
        state[0].copy_(x.flatten(0, 1))
        with torch.autocast(x.device.type, enabled=False):
            self._steps.step(segment, state)
        return state[-1].view(x.shape).clone()

    def _begin(self, memory: Memory) -> None:
        config, like = self._stack.config, self._like
        time = -(-TOKENS_AT_ONCE // config.seq_len) * config.seq_len
        self._plan = Plan(like.shape[0], time, config.seq_len, config.mem_len, memory.keys.shape[1])
        spec = WalkSpec.of(self._stack, like, self._plan, None)
        with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
            self._walk = Walk(spec, WalkTensors.of_stack(self._stack, like, memory))
            self._steps = steps_of(self._walk, None, None, NO_MASKS)
        self._states: dict[int, Tensor] = {}  # by length
        self._next = 0
