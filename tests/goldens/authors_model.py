"""The models of the paper's authors, written out in plain PyTorch from what their code computes.

The package is not imported here, so that a test against this file is a test against something else. Axis letters: B
batch, S tokens of a block, M window (`attn_lim`), D width, L layers, H heads, E head width, V vocabulary.

A model is a dictionary of tensors under the authors' names and a `Settings` of their hyper-parameters. It reads blocks
of tokens one after the other and carries a state from each block to the next:

- Feedback: one memory (M, B, D) shared by all layers. Each token adds one vector, the mix of all its layers' states.
- Transformer: a cache (L, M, B, D) of each layer's inputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters that decide what is computed, under the authors' names."""

    feedback: bool  # else the Transformer
    pre_norm: bool
    share_proj_kv: bool
    vocab_sz: int
    hid_sz: int  # D
    inner_hid_sz: int
    nheads: int
    head_dim: int
    nlayers: int
    attn_lim: int  # M
    mem_sz: int  # S
    adapt_span: bool = False
    adapt_span_len: float = 4.0  # the ramp, in positions
    adapt_span_trim_step: int = 2

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "Settings":
        """Read the strings that stand in the header of a golden file."""
        for name in ("expire_span", "adapt_span_cache", "adapt_span_layer"):
            if metadata.get(name, "False") != "False":
                raise ValueError(f"{name}={metadata[name]}: only False is written out here")
        types = get_type_hints(cls)
        read: dict[type, Callable[[str], Any]] = {
            bool: {"True": True, "False": False}.__getitem__,
            int: int,
            float: float,
        }
        return cls(**{f.name: read[types[f.name]](metadata[f.name]) for f in fields(cls) if f.name in metadata})


def shared_names(settings: Settings) -> set[str]:
    """What all layers have in common: part of a parameter's name after `layers.N.`"""
    names = {"attn.attn.key_pe"}
    if settings.feedback and settings.share_proj_kv:  # the Transformer ignores the option
        names |= {"attn.proj_key.weight", "attn.proj_val.weight"}
        if settings.pre_norm:
            names |= {"norm1.weight", "norm1.bias"}
    return names


def tie(parameters: Parameters, settings: Settings) -> Parameters:
    """Put layer 0's tensor in the place of every shared tensor, so that it collects the gradients of all layers."""
    tied = dict(parameters)
    for layer in range(1, settings.nlayers):
        for name in shared_names(settings):
            tied[f"layers.{layer}.{name}"] = tied[f"layers.0.{name}"]
    return tied


def initial_state(settings: Settings, batch: int) -> Tensor:
    """Zeros. They are attended to like anything else."""
    shape = (settings.attn_lim, batch, settings.hid_sz)
    return torch.zeros(shape if settings.feedback else (settings.nlayers, *shape), dtype=torch.float64)


def forward(p: Parameters, settings: Settings, tokens_BS: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities (B, S, V) of the next tokens, and the state for the next block, detached."""
    p = tie(p, settings)
    run = feedback if settings.feedback else transformer
    x_BSD, state = run(p, settings, F.embedding(tokens_BS, p["in_emb.weight"]), state)
    if settings.pre_norm:
        x_BSD = norm(p, "out_norm", x_BSD)
    logits_BSV = F.linear(x_BSD, p["out.out_emb.weight"], p["out.out_emb.bias"])
    return logits_BSV.log_softmax(-1), state.detach()


def loss(log_probs_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """Mean negative log likelihood, of shape (1,). The span's own loss is not part of it."""
    return F.nll_loss(log_probs_BSV.flatten(0, 1), targets_BS.flatten()).reshape(1)


def feedback(p: Parameters, settings: Settings, x_BSD: Tensor, memory_MBD: Tensor) -> tuple[Tensor, Tensor]:
    weight_L1 = p["single_memory_attn_params"].flatten().softmax(0)  # the embedding's entry comes first
    window, outputs = list(memory_MBD), []
    for x_BD in x_BSD.unbind(1):
        x_B1D = x_BD.unsqueeze(1)
        window_B1MD = torch.stack(window[-settings.attn_lim :], 1).unsqueeze(1)
        states = [x_B1D]
        for layer in range(settings.nlayers):
            states.append(apply_layer(p, settings, layer, states[-1], window_B1MD))
        outputs.append(states[-1])
        window.append(torch.einsum("l,lbd->bd", weight_L1, torch.stack(states).squeeze(2)))
    if settings.pre_norm:  # this block's mixes are carried after layer 0's first norm; older ones stay as they are
        window[settings.attn_lim :] = [norm(p, "layers.0.norm1", mix) for mix in window[settings.attn_lim :]]
    return torch.cat(outputs, 1), torch.stack(window[-settings.attn_lim :])


def transformer(p: Parameters, settings: Settings, x_BSD: Tensor, cache_LMBD: Tensor) -> tuple[Tensor, Tensor]:
    cache = []
    for layer in range(settings.nlayers):
        context_BTD = torch.cat([cache_LMBD[layer].transpose(0, 1), x_BSD], 1)
        cache.append(context_BTD[:, -settings.attn_lim :].transpose(0, 1))
        # Token i stands at index M + i and sees the M before it, not itself.
        window_BSMD = context_BTD[:, :-1].unfold(1, settings.attn_lim, 1).transpose(2, 3)
        x_BSD = apply_layer(p, settings, layer, x_BSD, window_BSMD)
    return x_BSD, torch.stack(cache)


def apply_layer(p: Parameters, settings: Settings, layer: int, x_BSD: Tensor, window_BSMD: Tensor) -> Tensor:
    """Attention to each token's window (oldest first), then the feed-forward, both residual."""
    name = f"layers.{layer}"

    def attend(x_BSD: Tensor, window_BSMD: Tensor) -> Tensor:
        heads = (settings.nheads, settings.head_dim)
        q_BSHE = F.linear(x_BSD, p[f"{name}.attn.proj_query.weight"]).unflatten(-1, heads)
        k_BSMHE = F.linear(window_BSMD, p[f"{name}.attn.proj_key.weight"]).unflatten(-1, heads)
        v_BSMHE = F.linear(window_BSMD, p[f"{name}.attn.proj_val.weight"]).unflatten(-1, heads)
        key_pe_EM = p[f"{name}.attn.attn.key_pe"].squeeze(0)
        scores_BSHM = torch.einsum("bshe,bsmhe->bshm", q_BSHE, k_BSMHE)
        scores_BSHM = (scores_BSHM + q_BSHE @ key_pe_EM) / settings.head_dim**0.5
        if settings.adapt_span:
            z_H11 = p[f"{name}.attn.attn.adaptive_span.mask.size_ratio"]
            probs_BSHM = span_softmax(settings, z_H11, scores_BSHM)
        else:
            probs_BSHM = scores_BSHM.softmax(-1)
        out_BSHE = torch.einsum("bshm,bsmhe->bshe", probs_BSHM, v_BSMHE)
        return F.linear(out_BSHE.flatten(2), p[f"{name}.attn.proj_out.weight"])

    def feed_forward(x_BSD: Tensor) -> Tensor:
        hidden = F.linear(x_BSD, p[f"{name}.ff.fc1.weight"], p[f"{name}.ff.fc1.bias"]).relu()
        return F.linear(hidden, p[f"{name}.ff.fc2.weight"], p[f"{name}.ff.fc2.bias"])

    norm1, norm2 = f"{name}.norm1", f"{name}.norm2"
    if settings.pre_norm:
        x_BSD = x_BSD + attend(norm(p, norm1, x_BSD), norm(p, norm1, window_BSMD))
        return x_BSD + feed_forward(norm(p, norm2, x_BSD))
    x_BSD = norm(p, norm1, x_BSD + attend(x_BSD, window_BSMD))
    return norm(p, norm2, x_BSD + feed_forward(x_BSD))


def span_softmax(settings: Settings, z_H11: Tensor, scores_BSHM: Tensor) -> Tensor:
    """Softmax times a mask per head, 1 up to distance z * M and falling to 0 along a ramp; then renormalised.

    The oldest entries that no head of the layer reaches are trimmed, in steps. Their mask is 0 in any case, but they
    would take part in the softmax, and the 1e-8 makes that visible in the ninth digit.
    """
    window, ramp, step = settings.attn_lim, settings.adapt_span_len, settings.adapt_span_trim_step
    distance_M = torch.arange(window - 1, -1, -1, dtype=torch.float64)  # 0 is the newest entry
    mask_HM = ((z_H11.flatten(1) * window - distance_M) / ramp + 1).clamp(0, 1)
    reach = math.ceil(z_H11.max().item() * window + ramp)
    trim = min(max(window - reach, 0), window - 1) // step * step
    probs_BSHN = scores_BSHM[..., trim:].softmax(-1) * mask_HM[:, trim:]
    probs_BSHN = probs_BSHN / (probs_BSHN.sum(-1, keepdim=True) + 1e-8)
    return F.pad(probs_BSHN, (trim, 0))


def norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])
