"""The model: embed, recur, logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self, cast, overload

from torch import Tensor, nn

from .checks import check_kind, check_tokens
from .config import FeedbackConfig, takes_hyperparameters
from .decoder import FeedbackDecoder, Implementation
from .details import Details
from .errors import InputError
from .layers import ContextKeysValues
from .memory import AnyMemory

# What version 0.0.11 calls parts of the stack.
_IN_STACK = {"layers": "layers", "layer_weight": "layer_weight", "shared_kv_proj": "to_kv", "pos_emb": "position"}


@takes_hyperparameters(needs_tokens=True)
class FeedbackTransformer(nn.Module):
    """The Feedback Transformer of arXiv 2002.09402 as `feedback-transformer-pytorch` 0.0.11 defines it: pre-norm,
    GEGLU, relative position, one key/value projection shared by all layers. Hyperparameters choose its variants.

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
        if self.config.num_tokens is None:
            raise InputError("num_tokens is missing; a FeedbackTransformer needs the size of its vocabulary")
        self.decoder = FeedbackDecoder(
            implementation=implementation, recompute=recompute, **self.config.to_dict() | {"num_tokens": None}
        )
        self.token_emb = nn.Embedding(self.config.num_tokens, self.config.dim)
        self.to_logits = nn.Linear(self.config.dim, self.config.num_tokens)

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
        return self.config.stored in ("top", self.config.depth)

    @keep_last_hidden.setter
    def keep_last_hidden(self, value: bool) -> None:
        self._configure(stored="top" if value else "mix")

    @property
    def layers(self) -> nn.ModuleList:
        """The L layers, each with the modules `attention` and `feedforward`."""
        return cast(nn.ModuleList, self.decoder.stack.layers)

    @property
    def layer_weight(self) -> nn.Parameter:
        """(L+1,), whose softmax mixes the states of all layers into what the memory stores."""
        return self.decoder.stack.layer_weight

    @property
    def shared_kv_proj(self) -> nn.Module | None:
        """The key/value projection of all layers and of the memory; None where each layer has its own."""
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
        """Changes hyperparameters on which no parameter's shape depends.

        Raises:
            InputError: the model's adaptive spans are parts of `mem_len`, or its position has too few vectors.
        """
        if self.config.adaptive_span and changes.get("mem_len", self.config.mem_len) != self.config.mem_len:
            raise InputError(
                f"mem_len is {self.config.mem_len} and cannot be set to {changes['mem_len']}: adaptive spans are parts "
                "of it; build a model with the other mem_len and scale the spans' ratios"
            )
        changed = dataclasses.replace(self.config, **changes)
        known = getattr(self.decoder.stack.position, "known_distances", None)
        if known is not None and changed.mem_len + changed.seq_len > known:
            raise InputError(
                f"mem_len + seq_len cannot be set to {changed.mem_len} + {changed.seq_len}: position "
                f"{changed.position!r} has vectors for {known} distances, those of the model as it was built"
            )
        self.config = changed
        self.decoder.config = self.decoder.stack.config = dataclasses.replace(self.decoder.config, **changes)

    @classmethod
    def from_config(
        cls, config: FeedbackConfig, *, implementation: Implementation = "auto", recompute: bool = False
    ) -> Self:
        """A freshly initialised model with these hyperparameters.

        Raises:
            InputError: it is no configuration of a model with a vocabulary.
        """
        check_kind("config", config, FeedbackConfig, "a FeedbackConfig; FeedbackConfig.from_dict makes one of a dict")
        return cls(**config.to_dict(), implementation=implementation, recompute=recompute)

    def span_loss(self) -> Tensor:
        """The sum over the layers of their heads' mean adaptive spans, in tokens: a number (), to be added to the loss
        times a small coefficient. Zero without adaptive spans."""
        return self.decoder.stack.span_loss()

    @property
    def implementation(self) -> Implementation:
        """How the recurrence is computed: "auto", "fused" or "stepwise"."""
        return self.decoder.implementation

    @implementation.setter
    def implementation(self, name: Implementation) -> None:
        self.decoder.implementation = name

    @property
    def recompute(self) -> bool:
        """Whether the backward pass recomputes what could have been saved."""
        return self.decoder.recompute

    @recompute.setter
    def recompute(self, flag: bool) -> None:
        self.decoder.recompute = flag

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
        """Tokens to logits.

        Args:
            x: (B, T) whole numbers in [0, V).
            memory, return_memory, mask, reset, context, context_mask, return_attention, return_states: as in
                `FeedbackDecoder.forward`.

        Returns:
            logits (B, T, V), or the pair of logits and memory, or `Details`.

        Raises:
            InputError: a token is out of range, or a shape, type or device does not fit.
        """
        check_tokens(x, self.config.vocab_size)
        found = self.decoder(
            self.token_emb(x),
            memory,
            return_memory=True,
            mask=mask,
            reset=reset,
            context=context,
            context_mask=context_mask,
            return_attention=return_attention,
            return_states=return_states,
        )
        if isinstance(found, Details):
            left = found.memory if return_memory else None
            return found._replace(output=self.to_logits(found.output), memory=left)
        states, left = found
        logits = self.to_logits(states)
        return (logits, left) if return_memory else logits

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`; a state dict of version 0.0.11 is refused with a hint."""
        check_kind("state_dict", state_dict, Mapping, "a mapping of names to tensors, as model.state_dict() gives")
        if "shared_kv_proj.weight" in state_dict:
            raise InputError(
                "this state dict is of feedback-transformer-pytorch 0.0.11; load it with "
                "feedback_transformer_pytorch.from_reference(state_dict, seq_len=..., mem_len=..., heads=...)"
            )
        return super().load_state_dict(state_dict, *args, **kwargs)
