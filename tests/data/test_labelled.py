import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedback_transformer_pytorch.data import Vocabulary, check_labels, fingerprint, read_lines
from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.tasks import IGNORE, Labelled


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_numbers_come_first_and_in_order_then_words() -> None:
    words = ["b", "10", "9", "-1", "a", "9"]
    assert Vocabulary.of(words).words == ("-1", "9", "10", "a", "b")


def test_numbers_too_long_to_read_are_words() -> None:
    assert Vocabulary.of(["a", "9" * 5000, "10"]).words == ("10", "9" * 5000, "a")


def test_words_become_their_places_and_none_is_ignored() -> None:
    assert Vocabulary(["x", "y"]).numbers(["y", None, "x"], "here").tolist() == [1, IGNORE, 0]


def test_an_unknown_word_is_named_with_its_place() -> None:
    with pytest.raises(InputError, match=r"^line 3 has 'z', which the model was not trained with; its words are x, y$"):
        Vocabulary(["x", "y"]).numbers(["z"], "line 3")


def test_a_vocabulary_comes_back_from_its_file(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["é", "1", " "])
    path = tmp_path / "vocabulary.json"
    path.write_text(vocabulary.to_json(), encoding="utf-8")
    found = Vocabulary.from_file(path)
    assert found.words == vocabulary.words
    assert found.fingerprint == vocabulary.fingerprint != Vocabulary(["1", "é", " "]).fingerprint


@pytest.mark.parametrize("content", ["{", "3", "[1]", "[]", '["a", "a"]'])
def test_a_damaged_vocabulary_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(InputError):
        Vocabulary.from_file(path)


def test_lines_are_words_or_whole_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"tokens": ["a", 1], "labels": [None, 2]}, {"tokens": [3], "labels": ["b"]})
    lines = read_lines([path])
    assert [(line.tokens, line.labels) for line in lines] == [(["a", "1"], [None, "2"]), (["3"], ["b"])]
    assert lines[1].where == f"{path!r}, line 2"
    encoded = lines[0].encode(Vocabulary(["a", "1", "2"]))
    assert (encoded.tokens.tolist(), encoded.labels.tolist()) == ([0, 1], [IGNORE, 2])


def test_files_may_be_compressed_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    record = json.dumps({"tokens": [1], "labels": [2]})
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(f"\n{record}\n\n{record}".encode()))
    assert len(read_lines([str(tmp_path / "*.gz")])) == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": [1]}, r"has no list as 'labels' \(its fields: 'tokens'\)"),
        ({"labels": [1], "tokens": "a"}, "has no list as 'tokens'"),
        ({"tokens": [1, 2], "labels": [1]}, "has 2 tokens and 1 labels"),
        ({"tokens": [], "labels": []}, "has 0 tokens"),
        ({"tokens": [None], "labels": [1]}, "has the token None; give a word or a whole number$"),
        ({"tokens": [1], "labels": [1.5]}, "has the label 1.5; give a word or a whole number, or null$"),
        ({"tokens": ["\ud800"], "labels": [1]}, r"has the token '\\ud800', with half a surrogate pair; give a word in"),
        ({"tokens": [True], "labels": [1]}, "has the token True"),
        ([1], "is list, not a JSON object"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, record: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", {"tokens": [1], "labels": [1]}, record)
    with pytest.raises(InputError, match=f"a.jsonl', line 2 {message}"):
        read_lines([path])


def test_files_without_lines_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(InputError, match="has no line"):
        read_lines([str(tmp_path / "a.jsonl")])
    with pytest.raises(InputError, match="no such file"):
        read_lines([str(tmp_path / "b.jsonl")])


def test_a_fingerprint_knows_tokens_labels_words_and_where_sequences_and_parts_end() -> None:
    def of(tokens: list[list[int]], labels: list[list[int]], words: str = "ab", split: int = 1) -> str:
        parts = [Labelled(np.array(t), np.array(given)) for t, given in zip(tokens, labels, strict=True)]
        return fingerprint(Vocabulary(list(words)), parts[:split], parts[split:])

    found = [
        of([[0, 1], [1]], [[1, 1], [0]]),
        of([[0], [1, 1]], [[1], [1, 0]]),
        of([[0, 1], [1]], [[1, 1], [1]]),
        of([[0, 1], [0]], [[1, 1], [0]]),
        of([[0, 1], [1]], [[1, 1], [0]], "ba"),
        of([[0, 1], [1]], [[1, 1], [0]], split=2),
    ]
    assert len(set(found)) == len(found)


def test_data_without_a_label_is_an_error() -> None:
    sequences = [Labelled(np.array([1, 2]), np.array([IGNORE, IGNORE])), Labelled(np.array([1]), np.array([0]))]
    check_labels(sequences, "a.jsonl")
    with pytest.raises(InputError, match=r"^a.jsonl has no label but null; give at least one"):
        check_labels(sequences[:1], "a.jsonl")
