from pathlib import Path

import pytest

from feedback_transformer_pytorch.training.options import TrainOptions


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
