import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from feedback_transformer_pytorch.data import Streams, stages
from feedback_transformer_pytorch.training.models.architectures import build_model
from feedback_transformer_pytorch.training.objective import NextToken
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.processes import Processes
from feedback_transformer_pytorch.training.updates.trainer import Trainer
from variants import VARIANTS


@pytest.fixture(params=VARIANTS)
def variant(options: TrainOptions, request: pytest.FixtureRequest) -> TrainOptions:
    """A run of each variant."""
    return dataclasses.replace(options, **VARIANTS[request.param])


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    """A run of seconds, on a text of its own."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} sheep and {n * n} goats went over the bridge.\n" for n in range(400)))
    return TrainOptions(
        files=[str(text)],
        out=str(tmp_path / "run"),
        dim=16,
        depth=2,
        heads=2,
        dim_head=8,
        seq_len=4,
        mem_len=16,
        max_updates=6,
        batch_size=4,
        block_len=16,
        lr=0.01,
        warmup_updates=2,
        eval_every=4,
        eval_len=200,
        sample_len=10,
        log_every=2,
    )


@pytest.fixture
def processes() -> Processes:
    """This one alone."""
    return Processes()


@pytest.fixture
def streams_of() -> Callable[[TrainOptions], Streams]:
    """Cuts the first 400 bytes of the text, a few updates' worth, into streams; documents are 33 bytes each."""

    def cut(options: TrainOptions) -> Streams:
        return Streams(
            np.frombuffer(Path(options.files[0]).read_bytes()[:400], dtype=np.uint8),
            batch_size=options.batch_size,
            stages=stages(options.block_len, options.first_block_len, options.curriculum_updates),
            documents=np.arange(0, 400, 33) if options.reset_documents else None,
        )

    return cut


@pytest.fixture
def trainer_of(
    streams_of: Callable[[TrainOptions], Streams], processes: Processes
) -> Callable[[TrainOptions], Trainer]:
    """Makes a trainer of a fresh model on these streams."""

    def make(options: TrainOptions) -> Trainer:
        torch.manual_seed(options.seed)
        return Trainer(options, build_model(options, 256), streams_of(options), NextToken(), processes)

    return make
