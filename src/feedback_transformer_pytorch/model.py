"""The model: embed, recur, logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args, overload

import torch
from torch import Tensor, nn

from .config import FeedbackConfig, Position, reject_unknown
from .errors import InputError
from .memory import Memory, as_memory, newest, newest_of_rows
from .recurrence import Stack, fused, stepwise
from .segments import Alignment, Visibility, align

Implementation = Literal["auto", "fused", "stepwise"]

# What version 0.0.11 calls parts of the stack.
_IN_STACK = {"layers": "layers", "layer_weight": "layer_weight", "shared_kv_proj": "to_kv", "pos_emb": "position"}


class FeedbackDecoder(nn.Module):
    """The Feedback Transformer without tokens: embeddings in, states out.

    Args:
        implementation: how time is walked; the function is the same. "stepwise" is the definition, "fused" the fast
            way, which falls back to the definition where it does not apply; "auto", the default, is "fused".
        recompute: keep less for the backward pass and recompute it (fused only).
        The others are those of `FeedbackConfig`. These two can also be set after construction.

    Raises:
        InputError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        mem_len: int,
        seq_len: int = 2,
        heads: int = 8,
        dim_head: int = 64,
        kv_heads: int | None = None,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        keep_last_hidden: bool = False,
        norm_memory: bool = False,
        position: Position = "t5",
        implementation: Implementation = "auto",
        recompute: bool = False,
        **unknown: object,
    ) -> None:
        super().__init__()
        reject_unknown(set(unknown), FeedbackConfig)
        self.config = FeedbackConfig(
            dim=dim,
            depth=depth,
            mem_len=mem_len,
            seq_len=seq_len,
            heads=heads,
            dim_head=dim_head,
            kv_heads=kv_heads,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
            keep_last_hidden=keep_last_hidden,
            norm_memory=norm_memory,
            position=position,
        )
        self.stack = Stack(self.config)
        self.norm = nn.LayerNorm(dim)
        self.implementation = implementation
        self.recompute = recompute

    @property
    def implementation(self) -> Implementation:
        """How time is walked: "auto", "fused" or "stepwise"."""
        return self._implementation

    @implementation.setter
    def implementation(self, name: Implementation) -> None:
        if name not in get_args(Implementation):
            raise InputError(f"implementation is {name!r}; it must be one of {get_args(Implementation)}")
        self._implementation: Implementation = name

    @overload
    def forward(
        self, x: Tensor, memory: Any = ..., return_memory: Literal[False] = ..., *, mask: Tensor | None = ...,
        reset: Tensor | None = ...,
    ) -> Tensor: ...  # fmt: skip

    @overload
    def forward(
        self, x: Tensor, memory: Any = ..., *, return_memory: Literal[True], mask: Tensor | None = ...,
        reset: Tensor | None = ...,
    ) -> tuple[Tensor, Memory]: ...  # fmt: skip

    def forward(
        self,
        x: Tensor,
        memory: Any = None,
        return_memory: bool = False,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Memory]:
        """Embeddings to states.

        Args:
            x: (B, T, D).
            memory: what an earlier call returned, or a pair of keys and values (B, n, G*E); None starts afresh.
            return_memory: return the memory after x too.
            mask: (B, T) bool, True at a real token. A padded token is as if it were not there; the state at its
                place means nothing.
            reset: (B, T) bool, True where a new document starts: nothing before it is visible to it or after.

        Returns:
            states (B, T, D), or the pair of states and Memory.

        Raises:
            InputError: a shape, type or device does not fit.
        """
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != self.config.dim or not x.is_floating_point():
            raise InputError(
                f"x is {x.dtype} {tuple(x.shape)}; it must be floating point (batch, time >= 1, dim={self.config.dim})"
            )
        past = as_memory(memory, x, self.config)
        if mask is None and reset is None and past.lengths is None:
            states, keys, values = self._walk(x, past, None)
            left = newest(keys, values, self.config.mem_len)
        else:
            alignment = self._align(x, past, mask, reset)
            states, keys, values = self._walk(alignment.scatter(x), past, alignment.visibility)
            states = alignment.gather(states)
            lengths = alignment.context_length_end.clamp(max=self.config.mem_len)
            left = newest_of_rows(keys, values, past.keys.shape[1] + alignment.ends, lengths)
        states = self.norm(states)
        return (states, left) if return_memory else states

    def _walk(self, x: Tensor, memory: Memory, visibility: Visibility | None) -> tuple[Tensor, Tensor, Tensor]:
        if self._implementation == "stepwise":
            return stepwise(self.stack, x, memory, visibility)
        return fused(self.stack, x, memory, visibility, recompute=self.recompute)

    def _align(self, x: Tensor, past: Memory, mask: Tensor | None, reset: Tensor | None) -> Alignment:
        for name, flags in (("mask", mask), ("reset", reset)):
            if flags is not None and (flags.shape != x.shape[:2] or flags.dtype != torch.bool):
                raise InputError(
                    f"{name} is {flags.dtype} {tuple(flags.shape)}; it must be torch.bool {tuple(x.shape[:2])}"
                )
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if reset is None:
            reset = torch.zeros_like(mask)
        carried = past.lengths
        if carried is None:
            carried = torch.full(x.shape[:1], past.keys.shape[1], device=x.device)
        return align(mask, reset, carried, self.config.seq_len)


class FeedbackTransformer(nn.Module):
    """The Feedback Transformer of arXiv 2002.09402 as `feedback-transformer-pytorch` 0.0.11 defines it: pre-norm,
    GEGLU, relative position, one key/value projection shared by all layers.

    Args:
        implementation: how time is walked; the function is the same. "stepwise" is the definition, "fused" the fast
            way, which falls back to the definition where it does not apply; "auto", the default, is "fused".
        recompute: keep less for the backward pass and recompute it (fused only).
        The others are those of `FeedbackConfig`. These two can also be set after construction.

    Raises:
        InputError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        depth: int,
        mem_len: int,
        seq_len: int = 2,
        heads: int = 8,
        dim_head: int = 64,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        keep_last_hidden: bool = False,
        norm_memory: bool = False,
        kv_heads: int | None = None,
        position: Position = "t5",
        implementation: Implementation = "auto",
        recompute: bool = False,
        **unknown: object,
    ) -> None:
        super().__init__()
        self.decoder = FeedbackDecoder(
            dim=dim,
            depth=depth,
            mem_len=mem_len,
            seq_len=seq_len,
            heads=heads,
            dim_head=dim_head,
            kv_heads=kv_heads,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
            keep_last_hidden=keep_last_hidden,
            norm_memory=norm_memory,
            position=position,
            implementation=implementation,
            recompute=recompute,
            **unknown,
        )
        self.config = dataclasses.replace(self.decoder.config, num_tokens=num_tokens)
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.to_logits = nn.Linear(dim, num_tokens)

    # The attributes of version 0.0.11.

    @property
    def seq_len(self) -> int:
        """Tokens in a segment, S; it can be set."""
        return self.config.seq_len

    @seq_len.setter
    def seq_len(self, value: int) -> None:
        self._configure(seq_len=value)

    @property
    def mem_len(self) -> int:
        """Memory slots, M; it can be set."""
        return self.config.mem_len

    @mem_len.setter
    def mem_len(self, value: int) -> None:
        self._configure(mem_len=value)

    @property
    def keep_last_hidden(self) -> bool:
        """Whether the memory stores the top layer instead of the mix; it can be set."""
        return self.config.keep_last_hidden

    @keep_last_hidden.setter
    def keep_last_hidden(self, value: bool) -> None:
        self._configure(keep_last_hidden=value)

    @property
    def layers(self) -> nn.ModuleList:
        """The L blocks."""
        return self.decoder.stack.layers

    @property
    def layer_weight(self) -> nn.Parameter:
        """(L+1,), whose softmax mixes the states of all layers into what the memory stores."""
        return self.decoder.stack.layer_weight

    @property
    def shared_kv_proj(self) -> nn.Module:
        """The key/value projection of all layers and of the memory."""
        return self.decoder.stack.to_kv

    @property
    def pos_emb(self) -> nn.Module:
        """The relative position."""
        return self.decoder.stack.position

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _IN_STACK:
            setattr(self.decoder.stack, _IN_STACK[name], value)
        else:
            super().__setattr__(name, value)

    def _configure(self, **changes: Any) -> None:
        """Changes hyper-parameters on which no parameter's shape depends."""
        self.config = dataclasses.replace(self.config, **changes)
        self.decoder.config = self.decoder.stack.config = dataclasses.replace(self.decoder.config, **changes)

    @classmethod
    def from_config(
        cls, config: FeedbackConfig, *, implementation: Implementation = "auto", recompute: bool = False
    ) -> Self:
        """A freshly initialised model with these hyper-parameters."""
        if config.num_tokens is None:
            raise InputError("num_tokens is None; a FeedbackTransformer needs the size of its vocabulary")
        return cls(**config.to_dict(), implementation=implementation, recompute=recompute)

    @property
    def implementation(self) -> Implementation:
        """How time is walked: "auto", "fused" or "stepwise"."""
        return self.decoder.implementation

    @implementation.setter
    def implementation(self, name: Implementation) -> None:
        self.decoder.implementation = name

    @property
    def recompute(self) -> bool:
        """Whether the backward pass recomputes what could have been kept."""
        return self.decoder.recompute

    @recompute.setter
    def recompute(self, flag: bool) -> None:
        self.decoder.recompute = flag

    @overload
    def forward(
        self, x: Tensor, memory: Any = ..., return_memory: Literal[False] = ..., *, mask: Tensor | None = ...,
        reset: Tensor | None = ...,
    ) -> Tensor: ...  # fmt: skip

    @overload
    def forward(
        self, x: Tensor, memory: Any = ..., *, return_memory: Literal[True], mask: Tensor | None = ...,
        reset: Tensor | None = ...,
    ) -> tuple[Tensor, Memory]: ...  # fmt: skip

    def forward(
        self,
        x: Tensor,
        memory: Any = None,
        return_memory: bool = False,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Memory]:
        """Tokens to logits.

        Args:
            x: (B, T) whole numbers in [0, V).
            memory, return_memory, mask, reset: as in `FeedbackDecoder.forward`.

        Returns:
            logits (B, T, V), or the pair of logits and Memory.

        Raises:
            InputError: a token is out of range, or a shape, type or device does not fit.
        """
        check_tokens(x, self.token_emb.num_embeddings)
        states, left = self.decoder(self.token_emb(x), memory, return_memory=True, mask=mask, reset=reset)
        logits = self.to_logits(states)
        return (logits, left) if return_memory else logits

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`; a state dict of version 0.0.11 is refused with a hint."""
        if "shared_kv_proj.weight" in state_dict:
            raise InputError(
                "this state dict is of feedback-transformer-pytorch 0.0.11; load it with "
                "feedback_transformer_pytorch.from_reference(state_dict, seq_len=..., mem_len=..., heads=...)"
            )
        return super().load_state_dict(state_dict, *args, **kwargs)


def check_tokens(x: Tensor, num_tokens: int) -> None:
    """Raises InputError unless x is (B, T) whole numbers in [0, V), neither B nor T zero."""
    if x.ndim != 2 or x.numel() == 0 or x.is_floating_point() or x.dtype == torch.bool:
        raise InputError(f"x is {x.dtype} {tuple(x.shape)}; it must be whole numbers (batch >= 1, time >= 1)")
    if torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    low, high = (int(end) for end in torch.aminmax(x))
    if low < 0 or high >= num_tokens:
        raise InputError(f"x holds token {low if low < 0 else high}; tokens must be in [0, num_tokens={num_tokens})")
