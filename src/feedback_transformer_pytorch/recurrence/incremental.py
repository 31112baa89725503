"""The walk without gradients that goes on from call to call: for tokens that come one after another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..memory import AnyMemory, Memory, StateMemory, newest
from ..segments import Visibility
from .adapters import without_adapters
from .applicability import warn_once
from .backends import Choice, KernelBackend, choose, needs_definition
from .engine.protocols import ForwardSteps
from .engine.walk import Walk, WalkSpec, inputs_of
from .layout.plan import Plan, Segment
from .layout.precision import choose_precision
from .request import WalkRequest, select_rows
from .stack import Stack

# Tokens between two moves of the newest slots to the front of the buffer: so many that moving costs next to nothing, so
# few that the buffer stays small.
TOKENS_AT_ONCE = 256


class Incremental:
    """Walks segment after segment, each as `fused` would on its own after those before.

    What a call of `fused` sets up for itself, views, buffers, and weights as the compiled kernel reads them, is set up
    once. The parameters, the mode and the autocast must therefore stay as they are.

    Keys and values go into one buffer of n + R + TOKENS_AT_ONCE slots, where n is how many slots a query sees and R the
    memory's M in whole segments. Once it is full, its newest R slots move to where they would be after R tokens, and
    the walk goes on from there. So neither its storage nor the time for a token grows with the number of tokens.

    Attributes:
        like: (B, 0, D), of the type and on the device of what it reads.
    """

    def __init__(
        self, stack: Stack, request: WalkRequest, memory: AnyMemory, keys_values: Memory | None = None
    ) -> None:
        """Starts behind a memory.

        Args:
            request: an x like those to come (B, T, D), the keys and values of the memory, and the context.
            keys_values: those of all slots, as `keys_values` gave them; None: those of the request.
        """
        unadapted = without_adapters(stack)
        with torch.no_grad():
            self._stack, self._parameters = unadapted.stack, unadapted.parameters()
        self.like = request.x[:, :0].detach()
        self._request = request._replace(x=self.like)
        self._begin(memory, *(request[1:3] if keys_values is None else keys_values.tensors))

    def _begin(self, memory: AnyMemory, keys: Tensor, values: Tensor) -> None:
        """Sets up behind a memory, with its keys and values (B, n, K*G*E)."""
        self._states = memory.states if isinstance(memory, StateMemory) else None
        self._lengths = memory.lengths
        reach = self._stack.reach()
        beyond = max(0, keys.shape[1] - reach)
        self._beyond = keys[:, :beyond], values[:, :beyond]
        request = self._request._replace(keys=keys[:, beyond:], values=values[:, beyond:])
        out_dtype, precision = choose_precision(self.like)
        self._plan = _plan(self._stack, request, reach)
        request = request._replace(visibility=_visibility(self._plan, memory.lengths))
        backend = choose(self._stack, request, self._plan, precision).backend
        assert backend is not None
        spec = WalkSpec.of(self._stack, request, self._plan, out_dtype, backend.precision(request, precision))
        with torch.no_grad(), torch.autocast(self.like.device.type, enabled=False):
            self._walk = Walk(spec, inputs_of(self._parameters, request))
            self._steps: ForwardSteps = backend.forward_steps(self._walk, None, None)
        self._scratch: dict[int, Tensor] = {}  # by length
        self._next = 0

    @staticmethod
    def applies(stack: Stack, request: WalkRequest, memory: AnyMemory) -> bool:
        """Whether it computes what the stack's modules say."""
        if stack.training and (stack.config.attn_dropout > 0 or stack.config.ff_dropout > 0):
            return False
        choice = _choose(stack, request, memory.lengths)
        if choice.backend is None and choice.reason is not None:
            warn_once(choice.reason)
        return choice.backend is not None

    @property
    def memory(self) -> AnyMemory:
        """The memory of the newest M tokens up to here."""
        if self._states is None:
            return self.keys_values
        count, stored = self._count, self._walk.buffer.stored
        assert stored is not None
        new = self._plan.from_rows(stored)[:, :count]
        if self._stack.config.carry == "normed_state":
            with torch.no_grad():
                new = self._stack.first_norm(new)
        left = newest([torch.cat([self._states, new], dim=1)], self._stack.config.mem_len)
        left.lengths = self._seen(left)
        return left

    @property
    def keys_values(self) -> Memory:
        """The keys and values of the same slots, which a walk needs to go on exactly where states are carried."""
        count = self._plan.carried + self._count
        keys, values = self._walk.buffer.all_keys_values(self._walk.spec.out_dtype, count)
        beyond_keys, beyond_values = self._beyond
        both = [torch.cat([beyond_keys, keys], dim=1), torch.cat([beyond_values, values], dim=1)]
        left = newest(both, self._stack.config.mem_len)
        assert isinstance(left, Memory)
        left.lengths = self._seen(left)
        return left

    @property
    def _count(self) -> int:
        """Tokens that the walk counts behind the carried slots."""
        return self._next * self._plan.seq_len

    def _seen(self, left: AnyMemory) -> Tensor | None:
        """(B,), how many slots of the memory that is left each row sees; None where every row sees all."""
        if self._lengths is None:
            return None
        slots = left.tensors[0].shape[1]
        lengths = (self._lengths + self._count).clamp(max=slots)
        return None if bool((lengths == slots).all()) else lengths

    def step(self, x: Tensor) -> Tensor:
        """A whole segment (B, S, D) to its top states (B, S, D); it enters the memory.

        Raises:
            InputError: x is not like the one at the start, or no whole segment.
        """
        self._check(x, self._plan.seq_len)
        states = self._walk_to_top(x)
        self._next += 1
        if self._next == len(self._plan.segments):
            self._move_to_front()
        if self._lengths is not None and int(self._lengths.min()) + self._count >= self._stack.config.mem_len:
            self._begin(self.memory, *self.keys_values.tensors)  # faster where all rows see all
        return states

    def peek(self, x: Tensor) -> Tensor:
        """The beginning (B, 1 <= s <= S, D) of a segment to its top states (B, s, D); it leaves no trace.

        Raises:
            InputError: x is not like the one at the start, or longer than a segment.
        """
        self._check(x, 1)
        return self._walk_to_top(x)

    def select(self, rows: Tensor) -> None:
        """Goes on with the rows (B',) named by index, in that order (beam search)."""
        request = self._request
        if len(rows) == len(self.like) and self._lengths is None and request.context is None:
            self._select_in_place(rows)
            return
        memory, keys_values = self.memory.select(rows), self.keys_values.select(rows)
        self.like = self.like.index_select(0, rows)
        self._request = request._replace(
            x=self.like,
            context=select_rows(request.context, rows),
            context_mask=select_rows(request.context_mask, rows),
        )
        self._begin(memory, *keys_values.tensors)

    def _select_in_place(self, rows: Tensor) -> None:
        buffer, plan = self._walk.buffer, self._plan
        slots = buffer.buffer.unflatten(1, (self._stack.config.banks, plan.batch, -1))
        slots.copy_(slots.index_select(2, rows))
        if buffer.stored is not None:
            stored = buffer.stored.unflatten(0, (-1, plan.batch, plan.seq_len))
            stored.copy_(stored.index_select(1, rows))
        self._beyond = self._beyond[0].index_select(0, rows), self._beyond[1].index_select(0, rows)
        self._states = None if self._states is None else self._states.index_select(0, rows)

    def _check(self, x: Tensor, shortest: int) -> None:
        like, seq_len = self.like, self._plan.seq_len
        fits = x.shape[0] == like.shape[0] and shortest <= x.shape[1] <= seq_len and x.shape[2:] == like.shape[2:]
        if not fits or x.dtype != like.dtype or x.device != like.device:
            raise InputError(
                f"x is {x.dtype} {tuple(x.shape)} on {x.device}; it must be {like.dtype} (batch={like.shape[0]}, "
                f"{shortest} to seq_len={seq_len}, dim={like.shape[2]}) on {like.device}, as at the start"
            )

    @torch.no_grad()
    def _walk_to_top(self, x: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        start = self._count
        segment = Segment(self._next, start, length, slice(start * batch, (start + length) * batch))
        if length not in self._scratch:
            self._scratch[length] = self.like.new_empty(self._stack.config.depth + 1, batch * length, x.shape[2])
        state = self._scratch[length]
        state[0].copy_(x.flatten(0, 1))
        with torch.autocast(x.device.type, enabled=False):
            self._steps.step(segment, state)
        return state[-1].view(x.shape).clone()

    def _move_to_front(self) -> None:
        """Moves what is stored of the newest R tokens to the places of the first R, and goes on behind them."""
        plan, buffer, batch = self._plan, self._walk.buffer, self._plan.batch
        kept = _whole_segments(self._stack.config.mem_len, plan.seq_len)
        distance = plan.time - kept
        # Pieces of this length do not overlap with what they are made of.
        for first in range(0, kept, distance):
            stop = min(first + distance, kept)
            slots = buffer.buffer[:, :, plan.slots :]
            slots[:, :, first:stop] = slots[:, :, first + distance : stop + distance]
            if buffer.stored is not None:
                behind = slice((first + distance) * batch, (stop + distance) * batch)
                buffer.stored[first * batch : stop * batch] = buffer.stored[behind]
        self._next = kept // plan.seq_len
        # Copies of nothing: views would keep what the walk began behind.
        self._beyond = self._beyond[0][:, :0].clone(), self._beyond[1][:, :0].clone()
        self._states = None if self._states is None else self._states[:, :0].clone()


def _whole_segments(count: int, seq_len: int) -> int:
    return -(-count // seq_len) * seq_len


def _plan(stack: Stack, request: WalkRequest, reach: int) -> Plan:
    """That of the buffer, which holds more tokens than there are slots, so that windows have the same slots always."""
    seq_len, carried = stack.config.seq_len, min(reach, request.keys.shape[1])
    time = _whole_segments(stack.config.mem_len, seq_len) + _whole_segments(TOKENS_AT_ONCE, seq_len)
    return Plan(request.x.shape[0], time, seq_len, reach, carried)


def _visibility(plan: Plan, lengths: Tensor | None) -> Visibility | None:
    """What rows see that see `lengths` (B,) slots of the carried memory. A single token has a neighbour."""
    if lengths is None:
        return None
    before = torch.arange(0, plan.time, plan.seq_len, device=lengths.device)
    context_length = lengths[:, None] + before
    return Visibility(context_length, torch.zeros_like(context_length, dtype=torch.bool))


def _choose(stack: Stack, request: WalkRequest, lengths: Tensor | None) -> Choice:
    stack = without_adapters(stack).stack
    plan = _plan(stack, request, stack.reach())
    request = request._replace(visibility=_visibility(plan, lengths))
    return choose(stack, request, plan, choose_precision(request.x)[1])


def rounded_weights_reason(stack: Stack, x: Tensor) -> str | None:
    """Why a walk of embeddings like x (B, T, D) does not read rounded weights as what they are, as half a sentence;
    None if it does."""
    reason = needs_definition(stack, x)
    if reason is not None:
        return reason
    if x.dtype != torch.float32:
        return f"only weights in torch.float32 are read so, not in {x.dtype}"
    empty = x.new_empty(x.shape[0], 0, stack.config.memory_dim)
    request = WalkRequest(x, empty, empty)
    return KernelBackend().unsupported_reason(
        stack, request, _plan(stack, request, stack.reach()), choose_precision(x)[1]
    )
