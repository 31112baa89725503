"""Write the small golden files beside this script: what the authors' models compute, by `authors_model.py`.

    PYTHONPATH=tests python -m goldens.make_goldens

A file holds `param.NAME`, four consecutive blocks (`blockN.tokens`, `.targets`, `.log_probs`, `.loss` and, for a
Feedback model, the carried `.memory_hidden`), and `block3.grad.NAME`: the gradients of the last block's loss, with the
carried state as a constant. A tensor that layers share has its gradient under layer 0. Numbers are float64. The
header's metadata are the hyper-parameters as strings. safetensors writes them in a random order, so the bytes of a
file differ from run to run where its content does not.
"""

import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from goldens.authors_model import Parameters, Settings, forward, initial_state, loss, tie

FOLDER = Path(__file__).parent
BATCH, BLOCKS = 2, 4
SHAPE: dict[str, object] = {
    "vocab_sz": 7,
    "hid_sz": 8,
    "inner_hid_sz": 12,
    "nheads": 2,
    "head_dim": 3,  # 2 * 3 is not 8, so that no transposed projection fits
    "nlayers": 2,
    "attn_lim": 5,
    "mem_sz": 3,
    "dropout": 0.0,
    "adapt_span": False,
    "adapt_span_len": 1.5,
    "adapt_span_loss": 0.001,
    "adapt_span_init": 0.4,
    "adapt_span_trim_step": 2,
    "adapt_span_cache": False,
    "adapt_span_layer": False,
    "expire_span": False,
    "device": "cpu",
}
CASES: dict[str, dict[str, object]] = {
    "prenorm": {"feedback": True, "pre_norm": True, "share_proj_kv": False},
    "prenorm_sharedkv": {"feedback": True, "pre_norm": True, "share_proj_kv": True},
    "postnorm": {"feedback": True, "pre_norm": False, "share_proj_kv": False},
    "postnorm_sharedkv": {"feedback": True, "pre_norm": False, "share_proj_kv": True},
    "prenorm_span": {"feedback": True, "pre_norm": True, "share_proj_kv": False, "adapt_span": True},
    "transformer_prenorm": {"feedback": False, "pre_norm": True, "share_proj_kv": False},
    "transformer_postnorm": {"feedback": False, "pre_norm": False, "share_proj_kv": False},
}
# For each layer and head a fraction of the window. Layer 0 reaches 3 of 5 entries, so 2 are trimmed. Layer 1 reaches 4,
# and nothing is trimmed, because the step is 2.
SPANS = [[0.1, 0.25], [0.45, 0.2]]


class Draw:
    """Numbers that are the same on every machine: `random()` is all that Python promises never to change."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def uniform(self, *shape: int, scale: float, around: float = 0.0) -> Tensor:
        draws = [self.random() for _ in range(torch.Size(shape).numel())]
        return (torch.tensor(draws, dtype=torch.float64).reshape(shape) * 2 - 1) * scale + around

    def ids(self, *shape: int, below: int) -> Tensor:
        return torch.tensor([int(self.random() * below) for _ in range(torch.Size(shape).numel())]).reshape(shape)


def draw_parameters(settings: Settings, draw: Draw) -> Parameters:
    """Values of order 1 everywhere, so that every parameter matters."""
    s, parameters = settings, dict[str, Tensor]()

    def linear(name: str, inputs: int, outputs: int, *, bias: bool) -> None:
        parameters[f"{name}.weight"] = draw.uniform(outputs, inputs, scale=(3 / inputs) ** 0.5)
        if bias:
            parameters[f"{name}.bias"] = draw.uniform(outputs, scale=0.5)

    def norm(name: str) -> None:
        parameters[f"{name}.weight"] = draw.uniform(s.hid_sz, scale=0.5, around=1.0)
        parameters[f"{name}.bias"] = draw.uniform(s.hid_sz, scale=0.5)

    parameters["in_emb.weight"] = draw.uniform(s.vocab_sz, s.hid_sz, scale=1.5)
    for layer in range(s.nlayers):
        name, inner = f"layers.{layer}", s.nheads * s.head_dim
        parameters[f"{name}.attn.attn.key_pe"] = draw.uniform(1, s.head_dim, s.attn_lim, scale=1.5)
        if s.adapt_span:
            span = f"{name}.attn.attn.adaptive_span.mask"
            parameters[f"{span}.size_ratio"] = torch.tensor(SPANS[layer], dtype=torch.float64).reshape(s.nheads, 1, 1)
            parameters[f"{span}.mask_template"] = torch.arange(1 - s.attn_lim, 1, dtype=torch.float64)
        for projection in ("query", "key", "val"):
            linear(f"{name}.attn.proj_{projection}", s.hid_sz, inner, bias=False)
        linear(f"{name}.attn.proj_out", inner, s.hid_sz, bias=False)
        linear(f"{name}.ff.fc1", s.hid_sz, s.inner_hid_sz, bias=True)
        linear(f"{name}.ff.fc2", s.inner_hid_sz, s.hid_sz, bias=True)
        norm(f"{name}.norm1")
        norm(f"{name}.norm2")
    linear("out.out_emb", s.hid_sz, s.vocab_sz, bias=True)
    if s.pre_norm:
        norm("out_norm")
    if s.feedback:
        parameters["single_memory_attn_params"] = draw.uniform(1, s.nlayers + 1, scale=1.0)
        parameters["single_memory_attn_buf"] = torch.zeros(1, s.nlayers + 1, dtype=torch.float64)  # a log of theirs
    return tie(parameters, s)


def run_blocks(settings: Settings, parameters: Parameters, blocks: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Everything that a golden file says about (tokens, targets) of consecutive blocks."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    state = initial_state(settings, len(blocks[0][0]))
    results: dict[str, Tensor] = {}
    for index, (tokens_BS, targets_BS) in enumerate(blocks):
        log_probs_BSV, state = forward(parameters, settings, tokens_BS, state)
        block_loss = loss(log_probs_BSV, targets_BS)
        results[f"block{index}.log_probs"], results[f"block{index}.loss"] = log_probs_BSV.detach(), block_loss.detach()
        if settings.feedback:
            results[f"block{index}.memory_hidden"] = state
    block_loss.sum().backward()
    grads = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    return results | {f"block{index}.grad.{name}": grad for name, grad in grads.items()}


def make(case: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of one golden file."""
    metadata = {name: str(value) for name, value in (SHAPE | CASES[case]).items()}
    settings, draw = Settings.from_metadata(metadata), Draw(seed=list(CASES).index(case))
    parameters = draw_parameters(settings, draw)
    shape = (BATCH, settings.mem_sz)
    blocks = [
        (draw.ids(*shape, below=settings.vocab_sz), draw.ids(*shape, below=settings.vocab_sz)) for _ in range(BLOCKS)
    ]
    tensors = {f"param.{name}": value.clone() for name, value in parameters.items()}
    for index, (tokens_BS, targets_BS) in enumerate(blocks):
        tensors |= {f"block{index}.tokens": tokens_BS, f"block{index}.targets": targets_BS}
    return tensors | run_blocks(settings, parameters, blocks), metadata


if __name__ == "__main__":
    for case in CASES:
        tensors, metadata = make(case)
        save_file(tensors, FOLDER / f"{case}.safetensors", metadata)
