import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from feedback_transformer_pytorch.data import Streams
from feedback_transformer_pytorch.training.architectures import build_model
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.trainer import Trainer


@pytest.fixture
def streams(options: TrainOptions) -> Streams:
    tokens = np.frombuffer(Path(options.files[0]).read_bytes()[:400], dtype=np.uint8)
    return Streams(tokens, batch_size=options.batch_size, block_len=options.block_len)


def test_the_memory_is_carried_to_the_next_update_and_dropped_where_the_text_restarts(
    options: TrainOptions, streams: Streams
) -> None:
    options = dataclasses.replace(options, dropout=0.0, lr=1e-30)  # the weights stay, so that losses can be foretold
    trainer = Trainer(options, streams, 256)
    torch.manual_seed(options.seed)
    model = build_model(options, 256)
    assert streams.updates_per_epoch < 9
    memory = None
    for update in range(9):
        block = streams.block(update)
        if update % streams.updates_per_epoch == 0:
            memory = None
        with torch.no_grad():
            logits, memory = model(block.inputs, memory, return_memory=True)
        expected = F.cross_entropy(logits.flatten(0, 1), block.targets.flatten())
        step = trainer.step()
        assert step.update == update + 1
        torch.testing.assert_close(step.loss, expected, rtol=0, atol=1e-6)
        assert trainer.memory is not None
        assert not trainer.memory.keys.requires_grad


def test_training_lowers_the_loss(options: TrainOptions, streams: Streams) -> None:
    trainer = Trainer(dataclasses.replace(options, max_updates=60), streams, 256)
    losses = [trainer.step().loss.item() for _ in range(60)]
    assert losses[-1] < losses[0] - 2
