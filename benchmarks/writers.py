"""Who writes token after token, each behind a prompt: `write(count)` writes so many more.

What a writer needs to begin, the prompt included, happens at its first token.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import Cache, DynamicCache, DynamicSlidingWindowLayer

from feedback_transformer_pytorch import FeedbackTransformer, generate, save_state
from feedback_transformer_pytorch.generation import Model, Sampling
from feedback_transformer_pytorch.hf import FeedbackTransformerConfig, FeedbackTransformerForCausalLM
from shapes import Shape

WITHOUT_END = 10**9  # tokens


class Writer(Protocol):
    """Writes tokens with temperature 1."""

    def write(self, count: int) -> None:
        """Writes `count` more tokens of each row."""


class Ours:
    """By this package's `generate`."""

    def __init__(self, model: Model, prompt: Tensor) -> None:
        self._model, self._tokens = model, generate(model, prompt, max_new_tokens=WITHOUT_END)

    def write(self, count: int) -> None:
        for _ in range(count):
            next(self._tokens)

    def state_bytes(self) -> int:
        """The size of a file of the state."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            save_state(path, self._tokens.state, self._model)
            return path.stat().st_size


class Calls:
    """By a loop of one's own over calls of a model, which 0.0.11 leaves to its user."""

    def __init__(self, model: nn.Module, prompt: Tensor) -> None:
        self._tokens = self._drawn(model, prompt)

    def write(self, count: int) -> None:
        for _ in range(count):
            next(self._tokens)

    @staticmethod
    def _drawn(model: nn.Module, tokens: Tensor) -> Iterator[None]:
        memory = None
        while True:
            with torch.no_grad():
                logits, memory = model(tokens, memory, return_memory=True)
            tokens = Sampling().draw(logits[:, -1])[:, None]
            yield


class GPT2:
    """By GPT-2 of `transformers`, in a loop that does no more than call it."""

    def __init__(self, model: GPT2LMHeadModel, prompt: Tensor, window: int | None = None) -> None:
        """Sets up behind a prompt.

        Args:
            window: how many tokens the cache holds; None: all.
        """
        layers = model.config.n_layer
        sliding = [] if window is None else [DynamicSlidingWindowLayer(sliding_window=window) for _ in range(layers)]
        self._model, self._tokens = model, prompt
        self._cache: Cache = Cache(layers=sliding) if sliding else DynamicCache(config=model.config)

    @torch.no_grad()
    def write(self, count: int) -> None:
        for _ in range(count):
            logits = self._model(self._tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
            self._tokens = Sampling().draw(logits[:, -1])[:, None]

    def state_bytes(self) -> int:
        """The size of the cache's keys and values."""
        return sum(
            part.numel() * part.element_size() for layer in self._cache.layers for part in (layer.keys, layer.values)
        )


class ThroughTransformers:
    """By `generate` of `transformers`, which goes on from its cache."""

    def __init__(self, model: FeedbackTransformerForCausalLM, prompt: Tensor) -> None:
        self._model, self._tokens, self._cache = model, prompt, None

    def write(self, count: int) -> None:
        found: Any = self._model.generate(
            self._tokens,
            attention_mask=torch.ones_like(self._tokens),
            past_key_values=self._cache,
            max_new_tokens=count,
            do_sample=True,
            top_k=0,
            return_dict_in_generate=True,
        )
        self._tokens, self._cache = found.sequences, found.past_key_values


def gpt2(shape: Shape, positions: int) -> GPT2LMHeadModel:
    """GPT-2 with as many weights a layer as the Feedback Transformer of a shape, for texts of up to `positions`."""
    inner = shape.heads * shape.dim_head
    weights = 2 * shape.dim * inner + 3 * 4 * shape.dim**2  # of queries, output and feed-forward
    config = GPT2Config(
        vocab_size=shape.num_tokens,
        n_positions=positions,
        n_embd=shape.dim,
        n_layer=shape.depth,
        n_head=shape.heads,
        n_inner=(weights - 4 * shape.dim**2) // (2 * shape.dim),
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


def for_transformers(model: FeedbackTransformer) -> FeedbackTransformerForCausalLM:
    """The same model as `transformers` knows it."""
    found = FeedbackTransformerForCausalLM(FeedbackTransformerConfig(**model.config.to_dict()))
    found.model.token_emb, found.model.decoder, found.lm_head = model.token_emb, model.decoder, model.to_logits
    return found.eval()


def in_turns(writers: Mapping[str, Writer], tokens: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds a token of every turn, by writer; the first turn, with the prompt, does not count."""
    times: dict[str, list[float]] = {name: [] for name in writers}
    for turn in range(1 + repeats):
        for name, writer in writers.items():
            start = time.perf_counter()
            writer.write(tokens)
            if turn > 0:
                times[name].append((time.perf_counter() - start) / tokens * 1e3)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: median(found) for name, found in times.items()}
