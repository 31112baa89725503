import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from feedback_transformer_pytorch.model import FeedbackTransformer
from feedback_transformer_pytorch.training.evaluation.text_bits import text_bits
from feedback_transformer_pytorch.training.inspection import findings as findings_module
from feedback_transformer_pytorch.training.inspection.findings import Findings, look
from feedback_transformer_pytorch.training.inspection.passage import Passage, passage_of
from feedback_transformer_pytorch.training.options import InspectOptions
from feedback_transformer_pytorch.training.saving.run import Run


def read(run: Run, **chosen: object) -> tuple[FeedbackTransformer, Passage]:
    passage = passage_of(run, InspectOptions.from_dict({"run": str(run.path), "out": "look", **chosen}))
    model = run.load_model(passage.num_tokens)
    assert isinstance(model, FeedbackTransformer)
    return model, passage


@pytest.fixture
def found(make_run: Callable[..., Run], text: Path) -> tuple[Run, FeedbackTransformer, Findings]:
    run = make_run()
    model, passage = read(run, text=str(text), tokens=40)
    return run, model, look(model, passage)


def test_the_numbers_are_those_of_the_model(found: tuple[Run, FeedbackTransformer, Findings]) -> None:
    run, model, findings = found
    passage = findings.passage
    with torch.no_grad():
        details = model(torch.from_numpy(passage.tokens)[None], return_attention=True, return_states=True)
    assert findings.attention.shape == (2, 2, 40, 8 + 4)
    for token, distance in ((1, 0), (20, 1), (39, 11)):
        expected = details.attention[0, :, :, 1 + token, 1 + token - distance]
        np.testing.assert_allclose(findings.attention[:, :, token, distance], expected, rtol=1e-5)
    np.testing.assert_allclose(findings.attention.sum(-1)[:, :, 4:], 1, rtol=1e-5)
    np.testing.assert_allclose(findings.norms, details.states[:, 0, 1:].norm(dim=-1), rtol=1e-5)
    bits = text_bits(model, run.objective, passage.tokens, run.tokenizer(), block_len=16).sums["bits"]
    assert float(findings.bits.sum()) == pytest.approx(bits, rel=1e-5)
    probabilities = details.output[0, 1:].softmax(-1)
    assert (findings.guesses[:, 0] == probabilities.argmax(-1).numpy()).all()
    np.testing.assert_allclose(findings.chances[:, 0], probabilities.amax(-1), rtol=1e-5)
    assert findings.words[:3] == ["o", "n", "e"]


def test_the_mix_is_shared_out(found: tuple[Run, FeedbackTransformer, Findings]) -> None:
    _, model, findings = found
    np.testing.assert_allclose(findings.shares.sum(0), 1, rtol=1e-4)
    np.testing.assert_allclose(findings.mix, model.layer_weight.softmax(0).detach(), rtol=1e-6)


def test_a_stored_layer_is_all_of_the_mix(make_run: Callable[..., Run], text: Path) -> None:
    findings = look(*read(make_run(stored=1), text=str(text), tokens=20))
    assert findings.mix.tolist() == [0, 1, 0]
    np.testing.assert_allclose(findings.shares[1], 1, rtol=1e-5)


@pytest.mark.parametrize("skip", [1, 15, 22])
def test_neither_blocks_nor_what_is_skipped_matter(
    make_run: Callable[..., Run], text: Path, monkeypatch: pytest.MonkeyPatch, skip: int
) -> None:
    run = make_run()
    whole = look(*read(run, text=str(text), tokens=40))
    monkeypatch.setattr(findings_module, "READ_AT_ONCE", 8)
    part = look(*read(run, text=str(text), tokens=40 - skip, skip=skip))
    for name in ("attention", "bits", "chances", "norms", "shares"):
        values, axis = getattr(whole, name), {"attention": 2, "norms": 1, "shares": 1}.get(name, 0)
        expected = np.take(values, range(skip, 40), axis)
        np.testing.assert_allclose(getattr(part, name), expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_mean_by_distance_counts_tokens_that_have_one(found: tuple[Run, FeedbackTransformer, Findings]) -> None:
    findings = found[2]
    means = findings.by_distance()
    assert means.shape == (2, 2, 12)
    at_5 = findings.attention[0, 1, 4:, 5]  # the line break before the text counts as a token
    assert means[0, 1, 5] == pytest.approx(float(at_5.mean()), rel=1e-5)


def test_labels_take_bits_where_they_are(make_run: Callable[..., Run]) -> None:
    model, passage = read(make_run(task="z2", seq_len=1), tokens=12)
    findings = look(model, passage)
    with torch.no_grad():
        log_probabilities = model(torch.from_numpy(passage.tokens)[None])[0].log_softmax(-1)
    for place, target in enumerate(passage.targets):
        if target < 0:
            assert math.isnan(findings.bits[place])
        else:
            expected = -float(log_probabilities[place, target]) / math.log(2)
            assert findings.bits[place] == pytest.approx(expected, rel=1e-4)
