"""The walk without gradients that goes on from call to call: for tokens that come one after another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..memory import AnyMemory, StateMemory, newest
from .applicability import warn_once
from .backends import Choice, choose
from .engine.protocols import ForwardSteps
from .engine.walk import Walk, WalkSpec, inputs_of
from .layout.plan import Plan, Segment
from .layout.precision import choose_precision
from .request import WalkRequest
from .stack import Stack

# Tokens that one walk is set up for: enough to forget what that costs, few enough for its buffers to stay small.
TOKENS_AT_ONCE = 512


class Incremental:
    """Walks segment after segment, each as `fused` would on its own after those before.

    What a call of `fused` sets up for itself, views, buffers, and weights as the compiled kernel reads them, is set up
    once for many segments. The parameters, the mode and the autocast must therefore stay as they are.
    """

    def __init__(self, stack: Stack, request: WalkRequest, memory: AnyMemory) -> None:
        """Starts behind a memory, all of which is seen.

        Args:
            request: an x like those to come (B, T, D), the keys and values of the memory, and the context.
        """
        self._stack, self._like = stack, request.x[:, :0].detach()
        self._request = request._replace(x=self._like)
        self._states = memory.states if isinstance(memory, StateMemory) else None
        self._begin(request.keys, request.values)

    @staticmethod
    def applies(stack: Stack, request: WalkRequest, memory: AnyMemory) -> bool:
        """Whether it computes what the stack's modules say, and sees all of the memory."""
        dropout = stack.training and (stack.config.attn_dropout > 0 or stack.config.ff_dropout > 0)
        if memory.lengths is not None or dropout:
            return False
        choice = _choose(stack, request)
        if choice.backend is None and choice.reason is not None:
            warn_once(choice.reason)
        return choice.backend is not None

    @property
    def memory(self) -> AnyMemory:
        """The memory of the newest M tokens up to here."""
        count, mem_len = self._next * self._plan.seq_len, self._stack.config.mem_len
        if self._states is None:
            return newest(self._keys_values(count), mem_len)
        stored = self._walk.buffer.stored
        assert stored is not None
        new = self._plan.from_rows(stored)[:, :count]
        if self._stack.config.carry == "normed_state":
            with torch.no_grad():
                new = self._stack.first_norm(new)
        return newest([torch.cat([self._states, new], dim=1)], mem_len)

    def _keys_values(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, n, K*G*E) of the carried slots and of the first `count` tokens."""
        keys, values = self._walk.buffer.all_keys_values(self._walk.spec.out_dtype, self._plan.carried + count)
        return torch.cat([self._beyond[0], keys], dim=1), torch.cat([self._beyond[1], values], dim=1)

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
            states = self.memory
            keys_values = newest(self._keys_values(self._next * self._plan.seq_len), self._stack.config.mem_len)
            self._states = states.states if isinstance(states, StateMemory) else None
            self._begin(*keys_values.tensors)
        batch, length = x.shape[:2]
        start = self._next * self._plan.seq_len
        segment = Segment(self._next, start, length, slice(start * batch, (start + length) * batch))
        if length not in self._scratch:
            self._scratch[length] = self._like.new_empty(self._stack.config.depth + 1, batch * length, x.shape[2])
        state = self._scratch[length]
        state[0].copy_(x.flatten(0, 1))
        with torch.autocast(x.device.type, enabled=False):
            self._steps.step(segment, state)
        return state[-1].view(x.shape).clone()

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        """Sets up for `TOKENS_AT_ONCE` tokens behind keys and values (B, n, K*G*E)."""
        reach = self._stack.reach()
        beyond = max(0, keys.shape[1] - reach)
        self._beyond = keys[:, :beyond], values[:, :beyond]
        request = self._request._replace(keys=keys[:, beyond:], values=values[:, beyond:])
        out_dtype, precision = choose_precision(self._like)
        self._plan = _plan(self._stack, request, reach)
        backend = choose(self._stack, request, self._plan, precision).backend
        assert backend is not None
        spec = WalkSpec.of(self._stack, request, self._plan, out_dtype, backend.precision(request, precision))
        with torch.no_grad(), torch.autocast(self._like.device.type, enabled=False):
            self._walk = Walk(spec, inputs_of(self._stack, request))
            self._steps: ForwardSteps = backend.forward_steps(self._walk, None, None)
        self._scratch: dict[int, Tensor] = {}  # by length
        self._next = 0


def _plan(stack: Stack, request: WalkRequest, reach: int) -> Plan:
    seq_len, carried = stack.config.seq_len, min(reach, request.keys.shape[1])
    time = -(-TOKENS_AT_ONCE // seq_len) * seq_len
    return Plan(request.x.shape[0], time, seq_len, reach, carried)


def _choose(stack: Stack, request: WalkRequest) -> Choice:
    return choose(stack, request, _plan(stack, request, stack.reach()), choose_precision(request.x)[1])
