import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feedback_transformer_pytorch import Memory
from feedback_transformer_pytorch.data import Streams
from feedback_transformer_pytorch.memory import StateMemory
from feedback_transformer_pytorch.recurrence.native.library import kernel_key, library
from feedback_transformer_pytorch.training.models.architectures import build_model
from feedback_transformer_pytorch.training.options import Model, TrainOptions
from feedback_transformer_pytorch.training.updates.memories import without_slots
from feedback_transformer_pytorch.training.updates.trainer import Step, Trainer

TrainerOf = Callable[[TrainOptions], Trainer]
STAYING = {"dropout": 0.0, "lr": 1e-30, "weight_decay": 0.0}  # the weights stay, so that losses can be foretold


def steps(trainer: Trainer, count: int) -> list[Step]:
    return [trainer.step() for _ in range(count)]


def slots(trainer: Trainer) -> list[int]:
    return [memory.keys.shape[1] for memory in trainer.memories]


@pytest.mark.parametrize("reset_documents", [False, True])
def test_the_memory_is_carried_to_the_next_update_and_dropped_where_the_text_restarts(
    options: TrainOptions, trainer_of: TrainerOf, streams_of: Callable[[TrainOptions], Streams], reset_documents: bool
) -> None:
    options = dataclasses.replace(options, **STAYING, reset_documents=reset_documents)
    trainer, streams = trainer_of(options), streams_of(options)
    torch.manual_seed(options.seed)
    model = build_model(options, 256)
    memory, restarts = None, 0
    for update in range(9):
        block = streams.block(update)
        assert reset_documents or block.reset is None
        if block.restarts:
            memory = None
            restarts += 1
        with torch.no_grad():
            logits, memory = model(block.inputs, memory, return_memory=True, reset=block.reset)
        expected = F.cross_entropy(logits.flatten(0, 1), block.targets.flatten()).item()
        step = trainer.step()
        assert step.update == trainer.update == update + 1
        assert step.loss == pytest.approx(expected, rel=1e-5)
        assert not trainer.memories[0].keys.requires_grad
    assert restarts == 2


def test_training_lowers_the_loss(options: TrainOptions, trainer_of: TrainerOf) -> None:
    done = steps(trainer_of(dataclasses.replace(options, max_updates=60)), 60)
    assert done[-1].loss < done[0].loss - 2


def test_the_learning_rate_is_reported_and_used(options: TrainOptions, trainer_of: TrainerOf) -> None:
    rates = [step.lr for step in steps(trainer_of(options), 3)]
    assert rates == [0.005, 0.01, 0.01]


@pytest.mark.parametrize("model", ["feedback", "parallel", "transformer-xl"])
@pytest.mark.parametrize("reset_documents", [False, True])
def test_groups_of_streams_learn_what_all_of_them_do(
    options: TrainOptions, trainer_of: TrainerOf, model: Model, reset_documents: bool
) -> None:
    options = dataclasses.replace(options, model=model, dropout=0.0, reset_documents=reset_documents)
    whole, grouped = (trainer_of(dataclasses.replace(options, accumulate=count)) for count in (1, 2))
    for expected, found in zip(steps(whole, 6), steps(grouped, 6), strict=True):
        assert found.loss == pytest.approx(expected.loss, abs=1e-4)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    assert len(grouped.memories) == 2


@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")  # zeros with documents
def test_groups_of_streams_learn_what_all_of_them_do_in_every_variant(
    variant: TrainOptions, trainer_of: TrainerOf
) -> None:
    options = dataclasses.replace(variant, dropout=0.0, reset_documents=True, span_loss=1e-2)
    whole, grouped = (trainer_of(dataclasses.replace(options, accumulate=count)) for count in (1, 2))
    for expected, found in zip(steps(whole, 6), steps(grouped, 6), strict=True):
        assert found.loss == pytest.approx(expected.loss, abs=1e-4)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)


@pytest.mark.parametrize("model", ["feedback", "parallel", "transformer-xl"])
def test_a_trainer_goes_on_bit_for_bit_where_another_was(
    options: TrainOptions, trainer_of: TrainerOf, model: Model
) -> None:
    goes_on_bit_for_bit(dataclasses.replace(options, model=model), trainer_of)


@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")  # zeros with documents
def test_a_trainer_goes_on_bit_for_bit_in_every_variant(variant: TrainOptions, trainer_of: TrainerOf) -> None:
    goes_on_bit_for_bit(variant, trainer_of)


def goes_on_bit_for_bit(options: TrainOptions, trainer_of: TrainerOf) -> None:
    options = dataclasses.replace(options, accumulate=2, reset_documents=True, first_block_len=8, curriculum_updates=3)
    first, second = trainer_of(options), trainer_of(options)
    steps(first, 4)
    kept = copy.deepcopy((first.weights(), first.optimizer_state(), {first.rows: first.streams_state()}))
    expected = steps(first, 4)
    steps(second, 1)
    second.restore(4, *kept)
    assert steps(second, 4) == expected
    torch.testing.assert_close(second.weights(), first.weights(), rtol=0, atol=0)
    torch.testing.assert_close(second.optimizer_state(), first.optimizer_state(), rtol=0, atol=0)


def test_what_is_kept_of_other_streams_is_refused(options: TrainOptions, trainer_of: TrainerOf) -> None:
    trainer = trainer_of(options)
    steps(trainer, 1)
    with pytest.raises(ValueError, match="are not 4"):
        trainer.restore(1, trainer.weights(), {}, {range(2): trainer.streams_state()})


def test_a_gradient_that_is_not_finite_changes_nothing_and_training_goes_on(
    options: TrainOptions, trainer_of: TrainerOf
) -> None:
    trainer = trainer_of(options)
    trainer.model.to_logits.bias.register_hook(lambda grad: grad * torch.nan if trainer.update == 1 else grad)
    first = trainer.step()
    before, optimizer_before = copy.deepcopy((trainer.weights(), trainer.optimizer_state()))
    second = trainer.step()
    assert (first.skipped, second.skipped, second.update) == (False, True, 2)
    assert not torch.tensor(second.grad_norm).isfinite()
    torch.testing.assert_close(trainer.weights(), before, rtol=0, atol=0)
    torch.testing.assert_close(trainer.optimizer_state(), optimizer_before, rtol=0, atol=0)
    assert slots(trainer) == [16]
    assert not trainer.step().skipped
    assert not torch.equal(trainer.weights()["token_emb.weight"], before["token_emb.weight"])


def test_a_memory_that_is_not_finite_is_emptied(options: TrainOptions, trainer_of: TrainerOf) -> None:
    trainer = trainer_of(dataclasses.replace(options, accumulate=2))
    first_group = iter([True, False])

    def spoil(_: nn.Module, __: object, output: tuple[Tensor, Memory]) -> tuple[Tensor, Memory] | None:
        if trainer.update != 1 or not next(first_group):
            return None
        logits, memory = output
        return logits * torch.nan, Memory(memory.keys, memory.values * torch.nan)

    trainer.model.register_forward_hook(spoil)
    trainer.step()
    assert trainer.step().skipped
    assert slots(trainer) == [0, 16]
    assert not trainer.step().skipped
    assert slots(trainer) == [16, 16]


def test_layer_weights_are_a_mix_of_all_layers(options: TrainOptions, trainer_of: TrainerOf) -> None:
    trainer = trainer_of(options)
    steps(trainer, 2)
    weights = trainer.layer_weights()["layer_weights"]
    assert len(weights) == options.depth + 1
    assert sum(weights) == pytest.approx(1)
    assert trainer_of(dataclasses.replace(options, model="parallel")).layer_weights() == {}


def test_dropout_differs_between_seeds(options: TrainOptions, trainer_of: TrainerOf) -> None:
    options = dataclasses.replace(options, dropout=0.5)
    weights = trainer_of(options).weights()
    losses = []
    for seed in (0, 0, 1):
        trainer = trainer_of(dataclasses.replace(options, seed=seed))
        trainer.model.load_state_dict(weights)
        losses.append(trainer.step().loss)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_model_learns_the_same(options: TrainOptions, trainer_of: TrainerOf) -> None:
    options = dataclasses.replace(options, model="parallel", dropout=0.0)
    plain, compiled = (
        [step.loss for step in steps(trainer_of(dataclasses.replace(options, compile=flag)), 3)]
        for flag in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "walk"),
    [
        ({"seq_len": 1}, "the compiled kernel"),
        ({"seq_len": 16}, "torch operations"),  # a block is one segment, for which the kernel does not pay
        ({"implementation": "stepwise"}, "the definition"),
        ({"model": "transformer-xl"}, None),
    ],
)
def test_it_says_what_walks_time(
    options: TrainOptions, trainer_of: TrainerOf, changes: dict[str, Any], walk: str | None
) -> None:
    if walk == "the compiled kernel":
        if library() is None:
            pytest.skip("no compiled kernel")
        walk = f"the compiled kernel {kernel_key()}"
    assert trainer_of(dataclasses.replace(options, **changes)).walk() == walk


SPANS = {"adaptive_span": True, "span_init": 0.25, "span_ramp": 3}


def ratios(trainer: Trainer) -> list[nn.Parameter]:
    return [parameter for name, parameter in trainer.model.named_parameters() if name.endswith("span.ratio")]


def test_the_loss_of_spans_changes_the_gradient_and_not_what_is_reported(
    options: TrainOptions, trainer_of: TrainerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is span_loss * mem_len / heads for each span."""
    options = dataclasses.replace(options, **SPANS, dropout=0.0, accumulate=2)
    grads: list[Tensor] = []

    def note(parameters: Iterable[nn.Parameter], _: float) -> Tensor:
        grads.append(torch.stack([p.grad.clone() for p in parameters if p.shape == (2,)]))
        return torch.zeros(())

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", note)
    losses = [trainer_of(dataclasses.replace(options, span_loss=span_loss)).step().loss for span_loss in (0.0, 3.0)]
    assert losses[0] == losses[1]
    torch.testing.assert_close(grads[1] - grads[0], torch.full((2, 2), 3.0 * 16 / 2))


def test_spans_stay_between_none_and_all_of_the_memory(options: TrainOptions, trainer_of: TrainerOf) -> None:
    trainer = trainer_of(dataclasses.replace(options, **SPANS, span_loss=100.0))
    with torch.no_grad():
        ratios(trainer)[0].copy_(torch.tensor([0.001, 1.5]))
    trainer.step()
    assert ratios(trainer)[0].tolist() == [0.0, 1.0]


def test_the_mean_span_is_in_tokens(options: TrainOptions, trainer_of: TrainerOf) -> None:
    assert trainer_of(dataclasses.replace(options, **SPANS)).mean_span() == {"mean_span": 4.0}
    assert trainer_of(options).mean_span() == {}


@pytest.mark.parametrize("stored", ["top", 0, 2])
def test_what_the_memory_does_not_mix_has_no_weights(
    options: TrainOptions, trainer_of: TrainerOf, stored: str | int
) -> None:
    """A parameter without a gradient would end training in several processes."""
    trainer = trainer_of(dataclasses.replace(options, stored=stored))
    steps(trainer, 2)
    assert trainer.layer_weights() == {}
    assert "decoder.stack.layer_weight" in trainer.weights()
    assert not any("layer_weight" in name for name in trainer.optimizer_state())


def test_an_emptied_memory_of_states_starts_as_a_fresh_one(options: TrainOptions, trainer_of: TrainerOf) -> None:
    options = dataclasses.replace(options, **STAYING, carry="state", memory_start="zeros", memory_norm="layer")
    trainer, fresh = trainer_of(options), trainer_of(options)
    trainer.step()
    fresh.step()
    spoil = torch.full_like(trainer.memories[0].states, torch.nan)
    trainer.memories = [without_slots(StateMemory(spoil))]
    fresh.memories = None
    assert trainer.step() == fresh.step()
