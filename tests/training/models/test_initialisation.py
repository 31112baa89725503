import dataclasses
from typing import Any

import pytest
import torch

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.models.architectures import build_model
from feedback_transformer_pytorch.training.models.initialisation import start_from
from feedback_transformer_pytorch.training.options import Model, TrainOptions
from variants import VARIANTS

NUM_TOKENS = 11


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(torch.arange(NUM_TOKENS)[None])


@pytest.mark.parametrize(
    ("name", "source_name"),
    [
        ("feedback", "feedback"),
        ("parallel", "parallel"),
        ("transformer-xl", "transformer-xl"),
        ("parallel", "transformer-xl"),
        ("transformer-xl", "parallel"),
    ],
)
def test_the_same_parameters_make_the_same_function(options: TrainOptions, name: Model, source_name: Model) -> None:
    model, source = (build_model(dataclasses.replace(options, model=it), NUM_TOKENS) for it in (name, source_name))
    assert not torch.equal(logits(model), logits(source))
    start_from(model, source)
    torch.testing.assert_close(logits(model), logits(source))


@pytest.mark.parametrize("source_name", ["parallel", "transformer-xl"])
def test_a_feedback_model_takes_what_a_baseline_has(options: TrainOptions, source_name: Model) -> None:
    model = build_model(options, NUM_TOKENS)
    source = build_model(dataclasses.replace(options, model=source_name), NUM_TOKENS)
    with torch.no_grad():
        for parameter in [*model.parameters(), *source.parameters()]:  # no two alike, as after training
            parameter.normal_()
    start_from(model, source)

    decoder = model.decoder
    torch.testing.assert_close(decoder.stack.layer_weight.softmax(0), torch.tensor([0.8, 0.1, 0.1]))
    pairs = [
        (decoder.stack.to_kv, source.layers[0].to_kv),
        (model.token_emb, source.token_emb),
        (model.to_logits, source.to_logits),
        (decoder.norm, source.norm),
        (decoder.stack.position, source.position),
    ]
    for block, layer in zip(decoder.stack.layers, source.layers, strict=True):
        pairs += [(getattr(block.attention, name), getattr(layer, name)) for name in ("norm", "to_q", "to_out")]
        pairs.append((block.feedforward, layer.feedforward))
    for module, counterpart in pairs:
        torch.testing.assert_close(module.state_dict(), counterpart.state_dict(), rtol=0, atol=0)
    assert sum(len(module.state_dict()) for module, _ in pairs) == len(model.state_dict()) - 1


@pytest.mark.parametrize(
    ("changes", "source_changes", "message"),
    [
        (
            {"model": "parallel"},
            {},
            "a ParallelTransformer cannot start from this FeedbackTransformer: layers.0.norm.weight is (16,) in the "
            "new model and missing in the source; ",
        ),
        (
            {"model": "parallel"},
            {"model": "parallel", "dim": 8},
            "token_emb.weight is (11, 16) in the new model and (11, 8) in the source",
        ),
        (
            {},
            {"model": "parallel", "kv_heads": 1},
            "decoder.stack.to_kv.weight is (32, 16) in the new model and (16, 16) in the source",
        ),
        (
            {"depth": 3},
            {"model": "parallel"},
            "decoder.stack.layers.2.attention.norm.weight is (16,) in the new model and missing in the source",
        ),
        (
            {},
            {"model": "parallel", "depth": 3},
            "decoder.stack.layers.2.attention.norm.weight is missing in the new model and (16,) in the source",
        ),
    ],
)
def test_a_source_that_does_not_fit_is_refused_and_changes_nothing(
    options: TrainOptions, changes: dict[str, object], source_changes: dict[str, object], message: str
) -> None:
    model = build_model(dataclasses.replace(options, **changes), NUM_TOKENS)
    source = build_model(dataclasses.replace(options, **source_changes), NUM_TOKENS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as raised:
        start_from(model, source)
    assert message in str(raised.value)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"kv": "per_layer", "memory_norm": "layer"},
        {"kv": "shared", "memory_norm": "layer"},
        {"kv": "per_layer", "memory_norm": "plain", "adaptive_span": True, "span_init": 0.5},
    ],
)
def test_a_variant_takes_what_a_baseline_has(options: TrainOptions, changes: dict[str, Any]) -> None:
    """One norm and one projection of all layers are those of the first layer; spans stay."""
    model = build_model(dataclasses.replace(options, **changes), NUM_TOKENS)
    source = build_model(dataclasses.replace(options, model="transformer-xl"), NUM_TOKENS)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    start_from(model, source)
    stack = model.decoder.stack
    for number, (block, layer) in enumerate(zip(stack.layers, source.layers, strict=True)):
        attention = block.attention
        pairs = [(attention.to_q, layer.to_q)]
        for own, shared, given in (
            (attention.to_kv, stack.to_kv, layer.to_kv),
            (attention.norm, stack.norm, layer.norm),
        ):
            if own is not None or number == 0:
                pairs.append((own if own is not None else shared, given))
        for module, counterpart in pairs:
            torch.testing.assert_close(module.state_dict(), counterpart.state_dict(), rtol=0, atol=0)
        if changes.get("adaptive_span"):
            assert attention.span.ratio.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_starts_from_its_own_kind(options: TrainOptions, name: str) -> None:
    model, source = (build_model(dataclasses.replace(options, **VARIANTS[name]), NUM_TOKENS) for _ in range(2))
    start_from(model, source)
    torch.testing.assert_close(logits(model), logits(source))
