"""The Transformers without feedback that the Feedback Transformer is compared with, made of its own layers.

They are of its size and shape: the same norms, feed-forward and start, one relative position for all layers, and
queries that see the last M tokens. They differ in what must differ: a layer attends to the states of the layer below,
so it has a key/value projection of its own (2*D*G*E parameters more per layer beyond the first), and there is no mix of
layers (L+1 parameters fewer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_flags, check_kind, check_tokens
from .config import FeedbackConfig
from .errors import InputError
from .layers import FeedForward, scale_last_linears
from .position import POSITIONS, DistanceBias, DistanceVectors, ScoreTerm, gather_rows

# Queries are attended to in parts, so that time and memory are linear in T; smaller parts than this save nothing.
MIN_QUERIES = 128


@dataclass(eq=False)
class HiddenMemory:
    """The inputs of all layers at the newest n <= M tokens, oldest first.

    Attributes:
        states: (B, L, n, D).
        visible: (B, n) bool, False where a slot is masked; None, the usual case, means that all are seen.
    """

    states: Tensor
    visible: Tensor | None = None

    def detach(self) -> HiddenMemory:
        """The same memory, detached from the graph that made it."""
        return HiddenMemory(self.states.detach(), self.visible)

    def select(self, rows: Tensor) -> HiddenMemory:
        """The memory of the rows (B',) named by index, in that order (beam search)."""
        visible = None if self.visible is None else self.visible.index_select(0, rows)
        return HiddenMemory(self.states.index_select(0, rows), visible)


@dataclass(frozen=True)
class _Window:
    """What one part of the queries sees, the same for all layers.

    Attributes:
        queries: their tokens in the call.
        keys: its keys, counted from the oldest memory slot; a slice, or their indices.
        bias: (1 or B, H or 1, queries, keys), added to the scores; -inf where a key is masked. A query sees some key.
        distance: (queries, keys), 0 where a key is ahead, M where it is further behind.
    """

    queries: slice
    keys: slice | Tensor
    bias: Tensor
    distance: Tensor


@dataclass(frozen=True)
class _DocumentMask:
    """Which query may see which key, where rows have padding or documents: n memory slots, then T tokens.

    Attributes:
        real: (B, n+T) bool, False at padding and at masked slots.
        document: (B, n+T), the number of the document it belongs to.
    """

    real: Tensor
    document: Tensor

    def masked(self, queries: slice, keys: slice) -> Tensor:
        """(B, queries, keys) bool, True where a key is masked by padding or by the start of a document."""
        masked = ~self.real[:, None, keys] | (self.document[:, queries, None] != self.document[:, None, keys])
        index = torch.arange(self.real.shape[1], device=self.real.device)
        # Without its own key, a query in padding would see nothing, and its softmax would be NaN.
        return masked & (index[queries, None] != index[keys])

    def visible(self, slots: int) -> Tensor | None:
        """(B, slots) bool, which of the last `slots` the next token may see; None if all."""
        visible = (self.real & (self.document == self.document[:, -1:]))[:, self.real.shape[1] - slots :]
        return None if bool(visible.all()) else visible


class _Layer(nn.Module):
    """Attention over a window, then feed-forward, each with a norm and a residual connection."""

    def __init__(self, config: FeedbackConfig) -> None:
        super().__init__()
        self.dim_head, self.dropout = config.dim_head, config.attn_dropout
        self.grouped, self.placement = config.kv_heads != config.heads, config.norm
        inner = config.heads * config.dim_head
        self.norm = nn.LayerNorm(config.dim)
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        self.to_kv = nn.Linear(config.dim, 2 * config.kv_dim, bias=False)
        self.to_out = nn.Linear(inner, config.dim, bias=config.output_bias)
        self.feedforward = FeedForward(config)

    def forward(self, x: Tensor, past: Tensor, windows: Sequence[_Window], vectors: list[DistanceVectors]) -> Tensor:
        """(B, T, D) to (B, T, D); `past` (B, n, D) is this layer's input before x, `vectors` are those of distances."""
        known = torch.cat([past, x], dim=1)
        if self.placement == "pre":
            known = self.norm(known)
        q = self.to_q(known[:, past.shape[1] :]).unflatten(-1, (-1, self.dim_head)).transpose(1, 2)
        k, v = self.to_kv(known).unflatten(-1, (2, -1, self.dim_head)).permute(2, 0, 3, 1, 4)
        out = [
            F.scaled_dot_product_attention(
                q[:, :, window.queries],
                k[:, :, window.keys],
                v[:, :, window.keys],
                attn_mask=self._bias(q[:, :, window.queries], window, vectors),
                dropout_p=self.dropout if self.training else 0.0,
                enable_gqa=self.grouped,
            )
            for window in windows
        ]
        x = x + self.to_out(torch.cat(out, dim=2).transpose(1, 2).flatten(2))
        if self.placement == "post":
            x = self.norm(x)
        return self.feedforward.residual(x, None, None)

    def _bias(self, q: Tensor, window: _Window, vectors: list[DistanceVectors]) -> Tensor:
        """What is added to the scores of the queries (B, H, queries, E): (1 or B, H or 1, queries, keys)."""
        bias = window.bias
        for table, row in vectors:
            products = (q * self.dim_head**-0.5) @ table.to(q.dtype).t()
            bias = bias + gather_rows(products, row[window.distance])
        return bias


class _WindowTransformer(nn.Module):
    """What the baselines share.

    Attributes:
        remembers: whether a call in training leaves a memory.
        sees_itself: whether a token attends to itself, besides the last M.
    """

    remembers: ClassVar[bool]
    sees_itself: ClassVar[bool] = True

    def __init__(self, **hyperparameters: Any) -> None:
        super().__init__()
        config = FeedbackConfig.from_dict(hyperparameters)
        self._check_config(config)
        assert config.num_tokens is not None
        self.config = config
        self.token_emb = nn.Embedding(config.num_tokens, config.dim)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.depth))
        self.position = POSITIONS[config.position](
            heads=config.heads, dim_head=config.dim_head, distances=config.mem_len + 1
        )
        self.norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()
        self.to_logits = nn.Linear(config.dim, config.num_tokens)
        if config.initialisation == "authors":
            scale_last_linears(self.layers)

    @classmethod
    def from_config(cls, config: FeedbackConfig) -> Self:
        """A freshly initialised model with these hyperparameters."""
        return cls(**config.to_dict())

    @overload
    def forward(
        self, x: Tensor, memory: HiddenMemory | None = ..., return_memory: Literal[False] = ..., *,
        mask: Tensor | None = ..., reset: Tensor | None = ...,
    ) -> Tensor: ...  # fmt: skip

    @overload
    def forward(
        self, x: Tensor, memory: HiddenMemory | None = ..., *, return_memory: Literal[True],
        mask: Tensor | None = ..., reset: Tensor | None = ...,
    ) -> tuple[Tensor, HiddenMemory]: ...  # fmt: skip

    def forward(
        self,
        x: Tensor,
        memory: HiddenMemory | None = None,
        return_memory: bool = False,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_attention: bool = False,
        return_states: bool = False,
    ) -> Tensor | tuple[Tensor, HiddenMemory]:
        """Tokens to logits.

        Args:
            x: (B, T) whole numbers in [0, V).
            memory: what an earlier call returned; None starts afresh.
            return_memory: return the memory after x too.
            mask: (B, T) bool, True at a real token. A padded token is invisible, but it takes a slot: padding
                between two tokens adds to their distance.
            reset: (B, T) bool, True where a new document starts: nothing before it is visible to it or after.
            return_attention, return_states: False; only models with feedback have them.

        With memory_start="zeros" a token sees a zero state in every slot of its window that is invisible to it.

        Returns:
            logits (B, T, V), or the pair of logits and HiddenMemory.

        Raises:
            InputError: a token is out of range; the shape of an argument, or the memory, is not of this model; or
                attention or states are asked for.
        """
        for name, asked in (("return_attention", return_attention), ("return_states", return_states)):
            if asked:
                raise InputError(
                    f"{name} is {asked}, but a {type(self).__name__} does not keep what it computes; leave it out, or "
                    "ask a FeedbackTransformer"
                )
        check_tokens(x, self.config.vocab_size)
        state = self.token_emb(x)
        memory = self._filled(self._check_memory(memory, state))
        past = memory.states
        documents = _document_mask(memory, x, mask, reset)
        terms: list[ScoreTerm] = self.position(self.config.mem_len + 1)
        biases = [term.bias for term in terms if isinstance(term, DistanceBias)]
        by_distance = torch.stack(biases).sum(0) if biases else state.new_zeros(1, self.config.mem_len + 1)
        if not self.sees_itself:
            by_distance = F.pad(by_distance[:, 1:], (1, 0), value=-torch.inf)
        windows = self._windows(past.shape[2], x.shape[1], documents, by_distance)
        vectors = [term for term in terms if isinstance(term, DistanceVectors)]
        left = []
        for layer, cached in zip(self.layers, past.unbind(1), strict=True):
            left.append(_newest(cached, state, self._slots))
            state = layer(state, cached, windows, vectors)
        logits = self.to_logits(self.norm(state))
        if not return_memory:
            return logits
        states = torch.stack(left, dim=1)
        return logits, HiddenMemory(states, None if documents is None else documents.visible(states.shape[2]))

    @property
    def _slots(self) -> int:
        return self.config.mem_len if self.remembers or not self.training else 0

    def _check_config(self, config: FeedbackConfig) -> None:
        name = type(self).__name__
        if config.num_tokens is None:
            raise InputError("num_tokens is missing; the model needs the size of its vocabulary")
        if config.position == "legacy":
            raise InputError(f"position is 'legacy'; {name} takes 't5', 'relative' or 'learned'")
        if config.adaptive_span:
            raise InputError(f"adaptive_span is True; {name} attends to all of its window: leave adaptive_span out")
        if config.context_dim is not None:
            raise InputError(f"context_dim is {config.context_dim}; {name} takes no context: leave context_dim out")
        if config.memory_start == "empty" and not self.sees_itself:
            raise InputError(
                f"memory_start is 'empty'; the first token of {name} would have nothing to attend to: "
                "give memory_start='zeros'"
            )

    def _check_memory(self, memory: HiddenMemory | None, like: Tensor) -> HiddenMemory:
        batch, depth, slots, dim = like.shape[0], self.config.depth, self._slots, self.config.dim
        if memory is None:
            return HiddenMemory(like.new_empty(batch, depth, 0, dim))
        check_kind("memory", memory, HiddenMemory, "a HiddenMemory")
        shape = tuple(memory.states.shape)
        if len(shape) != 4 or (*shape[:2], shape[3]) != (batch, depth, dim) or shape[2] > slots:
            raise InputError(
                f"memory.states is {shape}; {type(self).__name__} takes "
                f"(batch={batch}, depth={depth}, n <= {slots}, dim={dim})"
            )
        return memory

    def _filled(self, memory: HiddenMemory) -> HiddenMemory:
        """The memory with zero states before it, and in its masked slots, where it starts with them.

        They fill it to M + 1 slots. So the first slot is always a zero state and in no window; it serves as the key of
        what is masked.
        """
        if self.config.memory_start == "empty":
            return memory
        states = memory.states
        if memory.visible is not None:
            states = states.masked_fill(~memory.visible[:, None, :, None], 0)
        return HiddenMemory(F.pad(states, (0, 0, self.config.mem_len + 1 - states.shape[2], 0)))

    def _windows(
        self, slots: int, length: int, documents: _DocumentMask | None, bias_by_distance: Tensor
    ) -> list[_Window]:
        mem_len, size = self.config.mem_len, max(self.config.mem_len, MIN_QUERIES)
        windows = []
        for start in range(0, length, size):
            part = slice(start, min(start + size, length))
            queries = slice(slots + part.start, slots + part.stop)
            keys = slice(max(0, queries.start - mem_len), queries.stop)
            bias = _band(bias_by_distance, queries, keys)[None]
            window = _Window(part, keys, bias, _distance(queries, keys, mem_len, bias.device))
            if documents is not None:
                masked = documents.masked(queries, keys)[:, None]
                window = self._masked(window, keys, masked)
            windows.append(window)
        return windows

    def _masked(self, window: _Window, keys: slice, masked: Tensor) -> _Window:
        """The window without the keys that are masked (B, 1, queries, keys), or with zero states instead of them."""
        bias = window.bias.masked_fill(masked, -torch.inf)
        if self.config.memory_start == "empty":
            return dataclasses.replace(window, bias=bias)
        index = torch.arange(keys.start, keys.stop, device=bias.device)
        return _Window(
            queries=window.queries,
            keys=torch.cat([index, torch.zeros_like(index)]),
            bias=torch.cat([bias, window.bias.masked_fill(~masked, -torch.inf)], dim=-1),
            distance=window.distance.repeat(1, 2),
        )


class ParallelTransformer(_WindowTransformer):
    """A causal Transformer (Vaswani et al. 2017) whose queries see themselves and the last M tokens of the same call.

    In training it forgets all between calls: the memory it returns has no slots, and the next call starts as the first.
    In evaluation it keeps its window, as any Transformer that is served does.

    Args: those of `FeedbackConfig`; `seq_len`, `kv`, `memory_norm`, `stored` and `carry` mean nothing here.

    Raises:
        InputError: an argument is unknown or out of range, `position` is "legacy", or `adaptive_span` or `context_dim`
            is given.
    """

    remembers = False


class TransformerXL(_WindowTransformer):
    """Transformer-XL (Dai et al. 2019, arXiv 1901.02860): layers also see what the layer below computed in earlier
    calls, by a cache of its last M states.

    Position is that of the Feedback Transformer it is compared with, instead of the paper's sinusoids. Each query sees
    exactly its last M tokens and itself, so that it does not matter where a text is split into calls. The caller
    detaches the memory (the paper's stop-gradient).

    Args: those of `FeedbackConfig`; `seq_len`, `kv`, `memory_norm`, `stored` and `carry` mean nothing here.

    Raises:
        InputError: an argument is unknown or out of range, `position` is "legacy", or `adaptive_span` or `context_dim`
            is given.
    """

    remembers = True


class AuthorsTransformer(TransformerXL):
    """The Transformer that the authors of the Feedback Transformer compare it with, as their code has it
    (facebookresearch/transformer-sequential).

    It is a Transformer-XL whose queries see exactly the last M tokens and not themselves. Therefore it needs
    memory_start="zeros": its first token attends to M zero states.

    Args: those of `FeedbackConfig`; `seq_len`, `kv`, `memory_norm`, `stored` and `carry` mean nothing here.

    Raises:
        InputError: an argument is unknown or out of range, `position` is "legacy", `memory_start` is "empty", or
            `adaptive_span` or `context_dim` is given.
    """

    sees_itself = False


def _band(bias_by_distance: Tensor, queries: slice, keys: slice) -> Tensor:
    """(H, queries, keys): `bias_by_distance` (H, M+1), -inf where a key is ahead or more than M behind."""
    height, width = queries.stop - queries.start, keys.stop - keys.start
    # The last row of a band of diagonals begins at the first of these distances, each row above one distance later.
    distance = queries.stop - 1 - keys.start - torch.arange(height + width - 1, device=bias_by_distance.device)
    last = bias_by_distance.shape[1] - 1
    diagonals = bias_by_distance[:, distance.clamp(0, last)]
    return diagonals.masked_fill((distance < 0) | (distance > last), -torch.inf).unfold(1, width, 1).flip(1)


def _distance(queries: slice, keys: slice, furthest: int, device: torch.device) -> Tensor:
    """(queries, keys), how far each key lies behind each query; 0 where it is ahead, at most `furthest`."""
    query = torch.arange(queries.start, queries.stop, device=device)
    key = torch.arange(keys.start, keys.stop, device=device)
    return (query[:, None] - key).clamp(0, furthest)


def _newest(past: Tensor, x: Tensor, slots: int) -> Tensor:
    """The last `slots` states of `past` (B, n, D) and then x (B, T, D), or all if they are fewer."""
    length = x.shape[1]
    from_past = min(past.shape[1], max(0, slots - length))
    return torch.cat([past[:, past.shape[1] - from_past :], x[:, max(0, length - slots) :]], dim=1)


def _document_mask(memory: HiddenMemory, x: Tensor, mask: Tensor | None, reset: Tensor | None) -> _DocumentMask | None:
    """None if all slots and tokens are real ones of one document, the usual case."""
    check_flags("mask", mask, x.shape, x.device)
    check_flags("reset", reset, x.shape, x.device)
    if mask is None and reset is None and memory.visible is None:
        return None
    slots = memory.states.shape[2]
    visible = x.new_ones(x.shape[0], slots, dtype=torch.bool) if memory.visible is None else memory.visible
    real = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    document = torch.zeros_like(x) if reset is None else reset.long().cumsum(1)
    return _DocumentMask(torch.cat([visible, real], dim=1), F.pad(document, (slots, 0)))
