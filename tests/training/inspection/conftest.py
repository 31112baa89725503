from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from feedback_transformer_pytorch.data import ByteTokenizer, Vocabulary, train_bpe
from feedback_transformer_pytorch.tasks import find_task
from feedback_transformer_pytorch.training.models.architectures import build_model
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving.run import Run

TEXT = "one sheep, two sheep, <b>three</b> sheep & a goat for 5 $.\nünf $ Schafe.\n" * 20


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "sheep.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def make_run(tmp_path: Path, text: Path) -> Callable[..., Run]:
    """Makes a run as `train` leaves it, of random weights."""

    def make(tokenizer: str = "bytes", **options: Any) -> Run:
        path = tmp_path / "run"
        fields = {"dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "mem_len": 8, "seq_len": 4, "block_len": 16}
        if "task" not in options:
            fields["files"] = [str(text)]
        chosen = TrainOptions(out=str(path), **{**fields, **options})
        tokens: Any = train_bpe([str(text)], 300) if tokenizer == "bpe" else ByteTokenizer()
        if chosen.task is not None:
            tokens = Vocabulary(find_task(chosen.task).words)
        elif chosen.labelled is not None:
            tokens = Vocabulary(["a", "b"])
        run = Run.create(chosen, tokens)
        torch.manual_seed(0)
        run.save_weights(build_model(chosen, tokens.num_tokens).state_dict())
        return run

    return make
