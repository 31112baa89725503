import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.tasks import IGNORE
from feedback_transformer_pytorch.training.inspection.passage import TEXT_TOKENS, passage_of
from feedback_transformer_pytorch.training.options import InspectOptions
from feedback_transformer_pytorch.training.saving.run import Run


def options(run: Run, **chosen: object) -> InspectOptions:
    return InspectOptions.from_dict({"run": str(run.path), "out": "look", **chosen})


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_text_follows_a_line_break(make_run: Callable[..., Run], text: Path, tokenizer: str) -> None:
    run = make_run(tokenizer)
    passage = passage_of(run, options(run, text=str(text), tokens=30, skip=10))
    expected = run.tokenizer().encode("\n" + text.read_text()[:300])[:41]
    assert passage.tokens.tolist() == expected.tolist()
    assert passage.targets[:-1].tolist() == expected[1:].tolist()
    assert (passage.first, passage.number, passage.targets[-1]) == (11, 11, IGNORE)
    assert len(passage_of(run, options(run, text=str(text))).tokens) == 1 + TEXT_TOKENS


def test_tokens_have_a_text(make_run: Callable[..., Run], text: Path) -> None:
    run = make_run()
    passage = passage_of(run, options(run, text=str(text), tokens=61))
    words = [passage.word(token) for token in passage.tokens]
    assert words[:4] == ["\n", "o", "n", "e"]
    assert words[-2:] == ["\\xc3", "\\xbc"]  # of ü


def test_standard_input_is_a_text(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"two sheep")))
    assert bytes(passage_of(run, options(run, text="-")).tokens.tolist()) == b"\ntwo sheep"


def test_a_run_on_a_task_needs_no_text(make_run: Callable[..., Run]) -> None:
    run = make_run(task="s3", seq_len=1)
    passage = passage_of(run, options(run))
    assert len(passage.tokens) == run.options.block_len
    assert (passage.targets != IGNORE).any()
    assert passage.word(0) == run.vocabulary().words[0]
    assert not passage.predicts_next
    longer = passage_of(run, options(run, tokens=20, skip=4))
    assert (len(longer.tokens), longer.first, longer.number) == (24, 4, 5)


@pytest.mark.parametrize(("form", "count"), [("sequences", 2), ("stream", 3)])
def test_labels_come_from_lines(make_run: Callable[..., Run], tmp_path: Path, form: str, count: int) -> None:
    lines = [{"tokens": ["a", "b"], "labels": [None, "a"]}, {"tokens": ["b"], "labels": ["b"]}]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = make_run(labelled=form, seq_len=1)
    passage = passage_of(run, options(run, text=str(path)))
    assert passage.tokens.tolist() == [0, 1, 1][:count]
    assert passage.targets.tolist() == [IGNORE, 0, 1][:count]
    assert passage.tokens.dtype == np.int64


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        ({}, {}, "--text is missing; .* was trained on text"),
        ({"labelled": "stream", "seq_len": 1}, {}, "--text is missing; .* was trained on files of labels"),
        ({}, {"text": "sheep.txt", "skip": 10_000}, "--skip is 10000, but there are [0-9]+ tokens"),
        ({}, {"text": "goats.txt"}, "'goats.txt': no such file"),
    ],
)
def test_what_cannot_be_read_is_said(
    make_run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, object],
    chosen: dict[str, object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(**kind)
    with pytest.raises(InputError, match=message):
        passage_of(run, options(run, **chosen))
