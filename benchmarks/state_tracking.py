"""Which settings learn to track a state: the word problem of a finite group.

A sequence of random group elements goes in; at each place the running product comes out. Every sequence starts with an
empty memory. A model is trained on short sequences and tested on long ones, the same ones for all runs.

    python benchmarks/state_tracking.py --grid s3
    python benchmarks/state_tracking.py --group d14 --lr 2e-3 --updates 900
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedback_transformer_pytorch import FeedbackTransformer
from feedback_transformer_pytorch.baselines import ParallelTransformer, TransformerXL
from feedback_transformer_pytorch.config import FeedbackConfig
from feedback_transformer_pytorch.tasks.groups import GroupTask
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.updates.optimizer import build_optimizer, learning_rate
from grid import Benchmark, Grid, Settings, combinations
from runs import gradient_norms, run_benchmark
from state_gradient import StateGradientClamp

MODELS = {"feedback": FeedbackTransformer, "transformer-xl": TransformerXL, "parallel": ParallelTransformer}
SOLVED = 0.999  # accuracy at the test length
LAST = 8  # places at the end of a sequence, whose accuracy is reported on its own
TEST_SEED = 2**40  # of the test sequences; training sequences have the seed of their run
NORMAL_STD = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateTracking:
    """All that a run depends on besides its seed.

    Attributes:
        group: see feedback_transformer_pytorch/tasks/groups.py.
        position: of the model, see position.py.
        norm_memory: of the feedback model.
        mem_len, seq_len: M and S; the baselines have no segments.
        train_len, test_len: T in training and in testing.
        test_rows: sequences to test on.
        stop_after: a run ends after so many tests in a row without an error; 0: it does all updates.
        warmup_updates: updates in which the learning rate rises to `lr`.
        lr_decay: then "cosine", down to a tenth, or "none".
        clip: largest norm of the gradient.
        clamp: limit of the gradient of each stored state, see state_gradient.py; None for no limit.
        initialisation: "torch", PyTorch's own; "normal", matrices and embeddings from N(0, 0.02) and biases 0, except
            the parameters of the position; "normal-position", these too.
    """

    group: str = "s3"
    model: Literal["feedback", "transformer-xl", "parallel"] = "feedback"
    position: Literal["t5", "relative", "learned", "legacy"] = "relative"
    norm_memory: bool = True
    dim: int = 64
    depth: int = 2
    heads: int = 4
    dim_head: int = 16
    mem_len: int = 32
    seq_len: int = 1
    batch_size: int = 64
    train_len: int = 32
    test_len: int = 128
    test_rows: int = 256
    test_every: int = 100
    updates: int = 1000
    stop_after: int = 0
    lr: float = 1e-3
    warmup_updates: int = 0
    lr_decay: Literal["cosine", "none"] = "none"
    weight_decay: float = 0.0
    clip: float = 0.1
    clamp: float | None = None
    initialisation: Literal["torch", "normal", "normal-position"] = "torch"


NAMES = [field.name for field in dataclasses.fields(StateTracking)]
TRAIN_DEFAULTS = {
    "norm_memory": TrainOptions.memory_norm == "plain",
    **{name: getattr(TrainOptions, name) for name in ("lr", "warmup_updates", "lr_decay", "weight_decay", "clip")},
}
GRIDS = {
    "s3": Grid(range(5), [{"stop_after": 3}]),
    "train-defaults": Grid(range(5), [TRAIN_DEFAULTS]),
    "models": Grid(
        range(3),
        [
            {**TRAIN_DEFAULTS, **changes}
            for changes in ({"position": "t5"}, *combinations(model=["transformer-xl"], depth=[2, 4]))
        ],
    ),
    "position": Grid(range(3), combinations(position=["relative", "t5"])),
    "norm": Grid(range(3), combinations(norm_memory=[True, False])),
    "clip": Grid(range(3), combinations(clip=[0.1, 1.0], lr=[1e-3, 2e-3])),
    "clamp": Grid(range(3), combinations(clip=[1.0], lr=[2e-3], clamp=[None, 1.0, 0.1, 1e-2, 1e-3, 1e-4])),
    "init": Grid(range(3), combinations(initialisation=["torch", "normal", "normal-position"])),
    "warmup": Grid(range(3), combinations(lr=[1e-3, 2e-3], warmup_updates=[0, 100, 400])),
    "decay": Grid(range(3), combinations(weight_decay=[0.0, 0.01, 0.1])),
    "baseline": Grid(range(3), combinations(model=["transformer-xl"], depth=[2, 4])),
    "groups": Grid(range(3), combinations(group=["z2", "z60", "d14"])),
}


def resolve(changes: Settings) -> Settings:
    """All settings, from those that differ from the defaults."""
    return dataclasses.asdict(StateTracking(**changes))


BENCHMARK = Benchmark(
    name="state-tracking",
    title=__doc__.splitlines()[0],
    options=StateTracking,
    varied=NAMES,
    defaults={},
    grids=GRIDS,
    resolve=resolve,
)


def main(argv: Sequence[str] | None = None) -> None:
    run_benchmark(BENCHMARK, train, argv)


def train(settings: Settings, seed: int) -> dict[str, Any]:
    """One run."""
    options = StateTracking(**settings)
    task = GroupTask(options.group)
    torch.manual_seed(seed)
    model = build(options, len(task.words))
    clamp = None if options.clamp is None else StateGradientClamp(model, options.clamp)
    optimizer = build_optimizer(model, lr=options.lr, weight_decay=options.weight_decay)
    rng = np.random.default_rng(seed)
    test = sample(task, options.test_rows, options.test_len, np.random.default_rng(TEST_SEED))
    losses: list[float] = []
    norms: list[float] = []
    curve: list[dict[str, Any]] = []
    seconds, skipped = 0.0, 0
    for update in range(1, options.updates + 1):
        began = time.perf_counter()
        batch = sample(task, options.batch_size, options.train_len, rng)
        set_learning_rate(optimizer, options, update - 1)
        loss, norm = gradient(model, batch, options.clip)
        if math.isfinite(loss) and math.isfinite(norm):
            optimizer.step()
        else:
            skipped += 1
        losses.append(loss)
        norms.append(norm)
        seconds += time.perf_counter() - began
        if update % options.test_every == 0 or update == options.updates:
            since = curve[-1]["update"] if curve else 0
            point = {"update": update, "seconds": seconds, "loss": fmean(losses[since:])}
            curve.append(point | accuracies(model, test, options))
            if may_stop(options, curve):
                break
    figures = {
        **curve[-1],
        **when_solved(options, curve),
        **gradient_norms(norms),
        "clamped_share": clamp and clamp.share,
        "skipped": skipped,
        "seconds_per_update": seconds / len(losses),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return {"figures": figures, "curve": curve}


def sample(task: GroupTask, rows: int, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random elements and their running products, two tensors (B, T)."""
    elements, products = task.sample(rows, length, rng)
    return torch.from_numpy(elements), torch.from_numpy(products)


def build(options: StateTracking, num_tokens: int) -> nn.Module:
    """The model to train, from torch's global random state."""
    config = FeedbackConfig(
        num_tokens=num_tokens,
        dim=options.dim,
        depth=options.depth,
        heads=options.heads,
        dim_head=options.dim_head,
        mem_len=options.mem_len,
        seq_len=options.seq_len,
        norm_memory=options.norm_memory,
        position=options.position,
    )
    model = MODELS[options.model].from_config(config)
    if options.initialisation != "torch":
        initialise_normal(model, with_position=options.initialisation == "normal-position")
    return model


def initialise_normal(model: nn.Module, *, with_position: bool) -> None:
    """Matrices and embeddings from N(0, 0.02), biases 0; the gains of norms and the layer weights stay."""
    for name, parameter in model.named_parameters():
        if "position" in name and not with_position:
            continue
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=NORMAL_STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def set_learning_rate(optimizer: torch.optim.Optimizer, options: StateTracking, update: int) -> None:
    """That of `update`, counted from 0."""
    schedule = {"warmup_updates": options.warmup_updates, "max_updates": options.updates, "decay": options.lr_decay}
    lr = learning_rate(update, peak=options.lr, **schedule)
    for group in optimizer.param_groups:
        group["lr"] = lr


def gradient(model: nn.Module, batch: tuple[Tensor, Tensor], clip: float) -> tuple[float, float]:
    """Leaves the clipped gradient in the parameters; returns the mean loss in nats, and the norm before clipping."""
    elements, products = batch
    model.zero_grad()
    loss = F.cross_entropy(model(elements).flatten(0, 1), products.flatten())
    loss.backward()
    return loss.item(), nn.utils.clip_grad_norm_(model.parameters(), clip).item()


@torch.no_grad()
def accuracies(model: nn.Module, test: tuple[Tensor, Tensor], options: StateTracking) -> dict[str, float]:
    """The share of right products in sequences of training length and of test length, and in their last places.

    No place depends on a later one, so the beginnings of the long sequences are the short ones.
    """
    elements, products = test
    model.eval()
    right = (model(elements).argmax(-1) == products).double()
    model.train()
    figures = {}
    for length in (options.train_len, options.test_len):
        figures[f"accuracy_{length}"] = right[:, :length].mean().item()
        figures[f"accuracy_{length}_last_{LAST}"] = right[:, max(0, length - LAST) : length].mean().item()
    return figures


def when_solved(options: StateTracking, curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The update of the first test that is solved at the test length, and the lowest accuracy from then on."""
    found = [point[f"accuracy_{options.test_len}"] for point in curve]
    first = next((i for i, accuracy in enumerate(found) if accuracy >= SOLVED), None)
    if first is None:
        return {"update_solved": None, "lowest_after": None}
    return {"update_solved": curve[first]["update"], "lowest_after": min(found[first:])}


def may_stop(options: StateTracking, curve: Sequence[dict[str, Any]]) -> bool:
    """Whether the last `stop_after` tests had no error."""
    if not 0 < options.stop_after <= len(curve):
        return False
    return all(point[f"accuracy_{options.test_len}"] == 1 for point in curve[-options.stop_after :])


if __name__ == "__main__":
    main()
