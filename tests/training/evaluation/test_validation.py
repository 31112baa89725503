import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch

from feedback_transformer_pytorch.data import ByteTokenizer, Corpus, Text
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.tasks import IGNORE, Labelled
from feedback_transformer_pytorch.training.evaluation import validation as module
from feedback_transformer_pytorch.training.evaluation.measured import Measured
from feedback_transformer_pytorch.training.evaluation.text_bits import text_bits
from feedback_transformer_pytorch.training.evaluation.validation import StreamValidation, TextValidation
from feedback_transformer_pytorch.training.evaluation.xz import xz_bits_per_byte
from feedback_transformer_pytorch.training.models.architectures import build_model
from feedback_transformer_pytorch.training.objective import Labels, NextToken, Objective
from feedback_transformer_pytorch.training.options import TrainOptions

TEXT = "".join(f"{n} sheep and {n * n} goats went over the bridge.\n" for n in range(100)).encode()
CUT = 3000  # the held-out text begins here
STARTS = np.array([0, 100, 2980, 2990, CUT, 3007, 3150, 3300])


@pytest.fixture
def corpus() -> Corpus:
    tokens = ByteTokenizer().encode(TEXT)
    train = Text(tokens[:CUT], STARTS[STARTS < CUT], CUT, "train")
    heldout = Text(tokens[CUT:], STARTS[STARTS >= CUT] - CUT, len(TEXT) - CUT, "heldout")
    return Corpus(train, heldout, "sheep")


@pytest.mark.parametrize("reset_documents", [False, True])
def test_the_first_tokens_held_out_are_read_after_the_last_to_learn(
    options: TrainOptions, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, reset_documents: bool
) -> None:
    options = dataclasses.replace(options, reset_documents=reset_documents)
    validation = TextValidation(options, corpus, ByteTokenizer())
    given: dict[str, Any] = {}

    def read(_: Any, objective: Objective, tokens: Any, __: Any, **rest: Any) -> Measured:
        given.update(rest, tokens=tokens)
        return Measured(objective, 20.0, 10, {"bits": 30.0, "bytes": 10}, {})

    monkeypatch.setattr(module, "text_bits", read)
    assert validation.measure(build_model(options, 256), NextToken(), lambda: None) == {"bits_per_byte": 3.0}
    lead = 2 * options.mem_len
    first = CUT - lead
    assert (given["lead"], given["rows"], validation.num_bytes) == (lead, 200 // options.block_len, 200)
    assert given["tokens"].tobytes() == TEXT[first : CUT + 200]
    if reset_documents:
        assert np.flatnonzero(given["resets"]).tolist() == [start - first for start in (2980, 2990, CUT, 3007, 3150)]
    else:
        assert given["resets"] is None


def test_the_figure_is_that_of_evaluation(options: TrainOptions, corpus: Corpus) -> None:
    options = dataclasses.replace(options, block_len=200)
    model = build_model(options, 256)
    blocks: list[None] = []
    found = TextValidation(options, corpus, ByteTokenizer()).measure(model, NextToken(), lambda: blocks.append(None))
    tokens = np.frombuffer(TEXT[CUT - 32 : CUT + 200], np.uint8)
    assert found == text_bits(model, NextToken(), tokens, ByteTokenizer(), block_len=200, lead=32).values
    assert len(blocks) == 2


def test_xz_reads_the_same_bytes(options: TrainOptions, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    validation, heldout = TextValidation(options, corpus, ByteTokenizer()), TEXT[CUT : CUT + 200]
    figures = validation.reference()
    assert (figures.alone, figures.after_training) == (
        xz_bits_per_byte(heldout),
        xz_bits_per_byte(heldout, TEXT[:CUT]),
    )
    monkeypatch.setattr(module, "XZ_DICTIONARY", CUT + 199)
    assert validation.reference() == dataclasses.replace(figures, after_training=None)


def test_a_sample_is_the_same_for_the_same_update_and_leaves_randomness_alone(
    options: TrainOptions, corpus: Corpus
) -> None:
    model, validation = build_model(options, 256), TextValidation(options, corpus, ByteTokenizer())
    before = torch.get_rng_state()
    samples = [validation.sample(model, update, lambda: None) for update in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("place", "is_counted"), [(99, False), (100, True), (131, True), (132, False), (199, False)])
def test_a_stream_without_a_label_to_count_is_refused(options: TrainOptions, place: int, is_counted: bool) -> None:
    options = dataclasses.replace(options, eval_len=33, files=[], task="algorithmic-3")
    labels = np.full(200, IGNORE)
    labels[place] = 1
    stream = Labelled(np.zeros(200, np.int64), labels)
    if is_counted:
        measured = StreamValidation(options, stream).measure(build_model(options, 2), Labels(), lambda: None)
        assert measured["accuracy"] in (0, 1)
    else:
        message = "--eval-len is 33: the 32 positions of the held-out stream that follow its first 100 have no label"
        with pytest.raises(InputError, match=re.escape(message)):
            StreamValidation(options, stream)
