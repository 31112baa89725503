"""Peak memory of forward and backward with a context, beside a parallel decoder, each in a process of its own.

    python benchmarks/context_memory.py

The parallel decoder has the same width, depth, heads and feed-forward. Its queries attend to all earlier tokens and to
the context by `scaled_dot_product_attention`. The peak is that of `memory.py`.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from environment import describe
from feedback_transformer_pytorch import FeedbackConfig, FeedbackDecoder
from feedback_transformer_pytorch.layers import FeedForward
from memory import peak_mib
from report import RESULTS, print_table

CONFIG = FeedbackConfig(dim=256, depth=4, mem_len=64, seq_len=1, heads=8, dim_head=32, context_dim=256)
BATCH, TIME = 16, 512
CONTEXTS = (64, 256, 1024)
CONTESTANTS = ("parallel", "feedback")
OUT = RESULTS / "context-memory-cpu.json"


class ParallelLayer(nn.Module):
    """Causal attention, attention over the context, feed-forward: pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        inner = CONFIG.heads * CONFIG.dim_head
        self.norms = nn.ModuleList(nn.LayerNorm(CONFIG.dim) for _ in range(3))
        self.to_q = nn.ModuleList(nn.Linear(CONFIG.dim, inner, bias=False) for _ in range(2))
        self.to_kv = nn.ModuleList(nn.Linear(CONFIG.dim, 2 * inner, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList(nn.Linear(inner, CONFIG.dim) for _ in range(2))
        self.feedforward = FeedForward(CONFIG)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.norms[0](x)
        x = x + self._attend(0, normed, normed)
        x = x + self._attend(1, self.norms[1](x), context)
        return x + self.feedforward(self.norms[2](x))

    def _attend(self, number: int, x: Tensor, context: Tensor) -> Tensor:
        k, v = self.to_kv[number](context).chunk(2, dim=-1)
        q, k, v = (rows.unflatten(-1, (CONFIG.heads, -1)).transpose(1, 2) for rows in (self.to_q[number](x), k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=number == 0)
        return self.to_out[number](out.transpose(1, 2).flatten(2))


class ParallelDecoder(nn.Module):
    """The layers, and a norm after the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ParallelLayer() for _ in range(CONFIG.depth))
        self.norm = nn.LayerNorm(CONFIG.dim)

    def forward(self, x: Tensor, *, context: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, context)
        return self.norm(x)


def main() -> None:
    results = []
    for count in CONTEXTS:
        peaks = {name: in_fresh_process(name, count) for name in CONTESTANTS}
        found = {name: (peak, peak / peaks["parallel"]) for name, peak in peaks.items()}
        print_table(f"context of {count} tokens", ("peak MiB", "/ parallel"), found)
        results += [
            {"context": count, "contestant": name, "peak_mib": peak, "over_parallel": ratio}
            for name, (peak, ratio) in found.items()
        ]
    report = {
        "benchmark": "context-memory",
        "environment": describe("cpu"),
        "settings": {"config": CONFIG.to_dict(), "batch": BATCH, "time": TIME, "precision": "fp32"},
        "results": results,
    }
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {OUT}")


def in_fresh_process(contestant: str, count: int) -> float:
    """The peak of a contestant in MiB, with a context of `count` tokens."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak, contestant, count).result()


def peak(contestant: str, count: int) -> float:
    """The same in this process."""
    torch.manual_seed(0)
    model = ParallelDecoder() if contestant == "parallel" else FeedbackDecoder(**CONFIG.to_dict())
    x = torch.randn(BATCH, TIME, CONFIG.dim, requires_grad=True)
    context = torch.randn(BATCH, count, CONFIG.dim, requires_grad=True)
    forward_backward(model, x[:1, :4], context[:1])  # warm-up
    model.zero_grad()
    x.grad = context.grad = None
    return peak_mib(lambda: forward_backward(model, x, context))


def forward_backward(model: nn.Module, x: Tensor, context: Tensor) -> None:
    model(x, context=context).square().mean().backward()


if __name__ == "__main__":
    main()
