"""The model without tokens: embeddings in, states out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn

from .checks import check_context, check_flags, check_kind
from .config import FeedbackConfig, takes_hyperparameters
from .details import Details
from .errors import InputError
from .layers import ContextKeysValues
from .memory import AnyMemory, StateMemory, as_memory, memory_of, newest, newest_of_rows
from .recurrence import Stack, Walked, WalkRequest, fused, stepwise, walk_as_operator
from .segments import Alignment, align

Implementation = Literal["auto", "fused", "stepwise"]


@takes_hyperparameters(needs_tokens=False)
class FeedbackDecoder(nn.Module):
    """The Feedback Transformer without tokens: embeddings in, states out.

    Args:
        implementation: how the recurrence is computed; the function is the same. "stepwise" is the definition, "fused"
            the fast way, which falls back to the definition where it does not apply; "auto", the default, is "fused".
        recompute: save less for the backward pass and recompute it (fused only).
        hyperparameters: those of `FeedbackConfig`, by name.

    `implementation` and `recompute` can also be set after construction.

    Raises:
        InputError: an argument is unknown, missing or out of range.
    """

    def __init__(
        self, *, implementation: Implementation = "auto", recompute: bool = False, **hyperparameters: Any
    ) -> None:
        super().__init__()
        self.config = FeedbackConfig.from_dict(hyperparameters)
        self.stack = Stack(self.config)
        self.norm = nn.LayerNorm(self.config.dim) if self.config.norm == "pre" else nn.Identity()
        self.implementation = implementation
        self.recompute = recompute

    @property
    def implementation(self) -> Implementation:
        """How the recurrence is computed: "auto", "fused" or "stepwise"."""
        return self._implementation

    @implementation.setter
    def implementation(self, name: Implementation) -> None:
        if name not in get_args(Implementation):
            raise InputError(f"implementation is {name!r}; it must be one of {get_args(Implementation)}")
        self._implementation: Implementation = name

    @overload
    def forward(
        self, x: Tensor, memory: Any = ..., return_memory: Literal[False] = ..., *, mask: Tensor | None = ...,
        reset: Tensor | None = ..., context: Tensor | ContextKeysValues | None = ..., context_mask: Tensor | None = ...,
    ) -> Tensor: ...  # fmt: skip

    @overload
    def forward(
        self, x: Tensor, memory: Any = ..., *, return_memory: Literal[True], mask: Tensor | None = ...,
        reset: Tensor | None = ..., context: Tensor | ContextKeysValues | None = ..., context_mask: Tensor | None = ...,
    ) -> tuple[Tensor, AnyMemory]: ...  # fmt: skip

    @overload
    def forward(
        self, x: Tensor, memory: Any = ..., return_memory: bool = ..., *, mask: Tensor | None = ...,
        reset: Tensor | None = ..., context: Tensor | ContextKeysValues | None = ..., context_mask: Tensor | None = ...,
        return_attention: Literal[True], return_states: bool = ...,
    ) -> Details: ...  # fmt: skip

    @overload
    def forward(
        self, x: Tensor, memory: Any = ..., return_memory: bool = ..., *, mask: Tensor | None = ...,
        reset: Tensor | None = ..., context: Tensor | ContextKeysValues | None = ..., context_mask: Tensor | None = ...,
        return_attention: bool = ..., return_states: Literal[True],
    ) -> Details: ...  # fmt: skip

    def forward(
        self,
        x: Tensor,
        memory: Any = None,
        return_memory: bool = False,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        context: Tensor | ContextKeysValues | None = None,
        context_mask: Tensor | None = None,
        return_attention: bool = False,
        return_states: bool = False,
    ) -> Tensor | tuple[Tensor, AnyMemory] | Details:
        """Embeddings to states.

        Args:
            x: (B, T, D).
            memory: what an earlier call returned, or a pair of keys and values (B, n, K*G*E); None starts afresh.
            return_memory: return the memory after x too.
            mask: (B, T) bool, True at a real token. A padded token is as if it were not there; the state at its
                place means nothing.
            reset: (B, T) bool, True where a new document starts: nothing before it is visible to it or after.
            context: (B, N, C), what every token also attends to; for models with a `context_dim`, and only for them.
                Without gradients also what `project_context` made of it.
            context_mask: (B, N) bool, True at what is seen of the context; None: all of it.
            return_attention, return_states: return `Details`, which have the attention, or the states of all layers.

        Returns:
            states (B, T, D), or the pair of states and memory, or `Details`. In a trace, details break the graph.

        Raises:
            InputError: a shape, type or device does not fit.
        """
        check_kind("x", x, Tensor, f"a tensor (batch, time >= 1, dim={self.config.dim})")
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != self.config.dim or not x.is_floating_point():
            raise InputError(
                f"x is {x.dtype} {tuple(x.shape)}; it must be floating point (batch, time >= 1, dim={self.config.dim})"
            )
        self._check_type(x)
        check_context(x, context, context_mask, self.config)
        past = self.start(memory, x)
        alignment = None
        if (mask is not None or reset is not None or past.lengths is not None) and x.shape[0]:
            alignment = self._align(x, past, mask, reset)
        walked = self._walk(
            WalkRequest(
                x if alignment is None else alignment.scatter(x),
                *self.keys_values(past),
                None if alignment is None else alignment.visibility,
                context,
                context_mask,
                return_attention,
                return_states,
            )
        )
        left = self._left(past, walked, alignment)
        states = self.norm(walked.states if alignment is None else alignment.gather(walked.states))
        if return_attention or return_states:
            slots = past.tensors[0].shape[1]
            return Details.of(states, left if return_memory else None, walked, slots, alignment)
        return (states, left) if return_memory else states

    def _check_type(self, x: Tensor) -> None:
        if torch.is_autocast_enabled(x.device.type) or any(p.dtype == x.dtype for p in self.stack.parameters()):
            return
        parameter = next(self.stack.parameters(), self.stack.layer_weight)  # a replica of nn.DataParallel lists none
        if parameter.dtype != x.dtype:
            raise InputError(f"x is {x.dtype}, and the model's parameters are {parameter.dtype}; give both the same")

    def _walk(self, request: WalkRequest) -> Walked:
        if self._implementation == "stepwise":
            return stepwise(self.stack, request)
        if torch.compiler.is_compiling() and not (request.attention or request.layer_states):
            return walk_as_operator(self.stack, request)
        return fused(self.stack, request, recompute=self.recompute)

    def start(self, memory: Any, x: Tensor) -> AnyMemory:
        """The memory that precedes x (B, T, D), from what a caller gave as memory: with zero states before it, where it
        starts with them.

        Raises:
            InputError: it does not fit.
        """
        past = as_memory(memory, x, self.config)
        count = past.tensors[0].shape[1]
        missing = self.config.mem_len - count
        if self.config.memory_start == "empty" or (not missing and past.lengths is None):
            return past
        filled = []
        for tensor, blank in zip(past.tensors, self._blank(past), strict=True):
            filler = blank.to(tensor.dtype)
            if past.lengths is not None:
                seen = torch.arange(count, 0, -1, device=tensor.device) <= past.lengths[:, None]
                tensor = torch.where(seen[..., None], tensor, filler)
            filled.append(torch.cat([filler.expand(tensor.shape[0], missing, tensor.shape[2]), tensor], dim=1))
        return memory_of(filled)

    def _blank(self, like: AnyMemory) -> Sequence[Tensor]:
        """What a memory like this stores of a zero state, each (1, 1, ...)."""
        zero = self.stack.layer_weight.new_zeros(1, 1, self.config.dim)
        return [zero] if isinstance(like, StateMemory) else self.stack.project(zero)

    def keys_values(self, past: AnyMemory) -> tuple[Tensor, Tensor]:
        """The keys and values (B, n, K*G*E) of a memory; of states, only of those that some head sees, but where torch
        traces, which does not know their number."""
        if not isinstance(past, StateMemory):
            return past.keys, past.values
        seen = self.config.mem_len if torch.compiler.is_compiling() else self.stack.reach()
        return self.stack.project(past.states[:, -seen:])

    def project_context(self, context: Tensor) -> ContextKeysValues:
        """The keys and values that all layers make of a context (B, N, C). A call without gradients takes them in its
        place, so that many calls need to make them only once."""
        return self.stack.project_context(context)

    def _left(self, past: AnyMemory, walked: Walked, alignment: Alignment | None) -> AnyMemory:
        """The memory that is left after a walk."""
        config = self.config
        if isinstance(past, StateMemory):
            assert walked.stored is not None
            new = walked.stored if config.carry == "state" else self.stack.first_norm(walked.stored)
            stored = [torch.cat([past.states, new.to(past.states.dtype)], dim=1)]
        else:
            assert walked.keys is not None
            assert walked.values is not None
            stored = [walked.keys, walked.values]
        if alignment is None:
            return newest(stored, config.mem_len)
        lengths = alignment.context_length_end.clamp(max=config.mem_len)
        blank = self._blank(past) if config.memory_start == "zeros" else None
        ends = past.tensors[0].shape[1] + alignment.ends
        return newest_of_rows(stored, ends, lengths, blank, config.mem_len)

    def _align(self, x: Tensor, past: AnyMemory, mask: Tensor | None, reset: Tensor | None) -> Alignment:
        check_flags("mask", mask, x.shape[:2], x.device)
        check_flags("reset", reset, x.shape[:2], x.device)
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if reset is None:
            reset = torch.zeros_like(mask)
        carried = past.lengths
        if carried is None:
            carried = torch.full(x.shape[:1], past.tensors[0].shape[1], device=x.device)
        return align(mask, reset, carried, self.config.seq_len)
