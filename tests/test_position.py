"""Positions: T5's buckets, and the scores of "relative" written out by hand."""

import math

import torch
from torch import Tensor, nn

from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer, TransformerXL
from feedback_transformer_pytorch.layers import FeedForward
from feedback_transformer_pytorch.position import MAX_DISTANCE, NUM_BUCKETS, bucket, bucket_starts

CONFIG = FeedbackConfig(
    num_tokens=7, dim=6, depth=1, mem_len=40, seq_len=1, heads=2, dim_head=3, position="relative", keep_last_hidden=True
)
TIME = 60


def bucket_by_hand(distance: int) -> int:
    """Raffel et al. 2020, section 2.1."""
    if distance < 16:
        return distance
    return min(31, 16 + int(16 * math.log(distance / 16) / math.log(128 / 16)))


def test_buckets_are_t5s() -> None:
    assert bucket(torch.arange(300)).tolist() == [bucket_by_hand(distance) for distance in range(300)]


def test_bucket_starts_are_where_buckets_start() -> None:
    starts = bucket_starts().tolist()
    assert len(starts) == NUM_BUCKETS + 1
    assert bucket(torch.tensor(starts[:-1])).tolist() == list(range(NUM_BUCKETS))
    assert bucket(torch.tensor(starts[1:-1]) - 1).tolist() == list(range(NUM_BUCKETS - 1))
    assert starts[-1] > MAX_DISTANCE


def attend(q: Tensor, keys: dict[int, Tensor], values: dict[int, Tensor], table: Tensor) -> Tensor:
    """One query (H, E) over keys (H, E) by their distance: softmax of (q.k + q.r) / sqrt(E)."""
    out = []
    for head in range(q.shape[0]):
        scores = {
            distance: float(q[head] @ key[head] + q[head] @ table[bucket_by_hand(distance)]) / math.sqrt(q.shape[1])
            for distance, key in keys.items()
        }
        total = sum(map(math.exp, scores.values()))
        out.append(sum(math.exp(score) / total * values[distance][head] for distance, score in scores.items()))
    return torch.cat(out)


def heads(projected: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (H, E) from a projection (2*H*E,), keys first."""
    keys, values = projected.view(2, CONFIG.heads, CONFIG.dim_head)
    return keys, values


def finish(attention: nn.Module, feedforward: FeedForward, x: Tensor, attended: Tensor | None) -> Tensor:
    """The residuals and the feed-forward of a layer."""
    if attended is not None:
        x = x + attention.to_out(attended)
    return feedforward.residual(x, None, None)


def test_the_feedback_models_scores_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    model = FeedbackTransformer.from_config(CONFIG).double()
    x = torch.randint(0, 7, (1, TIME))
    stack, table = model.decoder.stack, model.decoder.stack.position.vectors.weight
    attention, feedforward = stack.layers[0].attention, stack.layers[0].feedforward
    past: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        logits = model(x)[0]
        for t, state in enumerate(model.token_emb(x)[0]):
            seen = {t - u: past[u] for u in range(max(0, t - CONFIG.mem_len), t)}
            attended = None
            if seen:
                q = attention.to_q(attention.norm(state)).view(CONFIG.heads, CONFIG.dim_head)
                keys, values = ({d: pair[which] for d, pair in seen.items()} for which in (0, 1))
                attended = attend(q, keys, values, table)
            state = finish(attention, feedforward, state, attended)
            past.append(heads(stack.to_kv(state)))
            expected = model.to_logits(model.decoder.norm(state))
            torch.testing.assert_close(logits[t], expected, rtol=1e-9, atol=1e-9)


def test_transformer_xls_scores_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    model = TransformerXL.from_config(CONFIG).double()
    x = torch.randint(0, 7, (1, TIME))
    layer, table = model.layers[0], model.position.vectors.weight
    with torch.no_grad():
        logits = model(x)[0]
        normed = layer.norm(model.token_emb(x)[0])
        projected = [heads(row) for row in layer.to_kv(normed)]
        for t, state in enumerate(model.token_emb(x)[0]):
            seen = {t - u: projected[u] for u in range(max(0, t - CONFIG.mem_len), t + 1)}
            q = layer.to_q(normed[t]).view(CONFIG.heads, CONFIG.dim_head)
            keys, values = ({d: pair[which] for d, pair in seen.items()} for which in (0, 1))
            state = finish(layer, layer.feedforward, state, attend(q, keys, values, table))
            expected = model.to_logits(model.norm(state))
            torch.testing.assert_close(logits[t], expected, rtol=1e-9, atol=1e-9)
