from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.data import ByteTokenizer, Corpus, corpus, default_corpus, read_corpus, train_bpe
from feedback_transformer_pytorch.errors import InputError

tokenizer = ByteTokenizer()


@pytest.fixture(scope="module")
def default() -> Corpus:
    return default_corpus(tokenizer)


def train_text(corpus: Corpus) -> bytes:
    return tokenizer.decode_bytes(corpus.train.tokens)


def heldout_text(corpus: Corpus) -> bytes:
    return tokenizer.decode_bytes(corpus.heldout.tokens)


def paragraphs(text: bytes) -> set[str]:
    return {" ".join(paragraph.split()) for paragraph in text.decode().split("\n\n")}


def test_default_corpus_is_a_megabyte_or_two_of_english_with_a_tenth_held_out(default: Corpus) -> None:
    size = default.train.num_bytes + default.heldout.num_bytes
    assert 1_500_000 < size < 3_000_000
    assert default.heldout.num_bytes / size == pytest.approx(0.1, abs=0.02)
    assert train_text(default).count(b" the ") > 5_000
    assert default.name.startswith("standard library of Python 3.")


def test_no_paragraph_of_the_default_corpus_is_on_both_sides(default: Corpus) -> None:
    assert not paragraphs(train_text(default)) & paragraphs(heldout_text(default))


def test_both_parts_of_the_default_corpus_have_both_kinds_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    topics, docstrings = ([f"{kind} {n}" for n in range(10)] for kind in ("topic", "docstring"))
    monkeypatch.setattr(corpus, "standard_library_text", lambda: (topics, docstrings))
    default = default_corpus(tokenizer)
    assert train_text(default).decode() == "\n\n".join(topics[:9] + docstrings[:9]) + "\n"
    assert heldout_text(default) == b"topic 9\n\ndocstring 9\n"


def test_half_a_surrogate_pair_in_a_docstring_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "standard_library_text", lambda: (["a", "\ud800"], []))
    assert heldout_text(default_corpus(tokenizer)) == b"?\n"


def test_without_files_the_default_corpus_is_read(tmp_path: Path, default: Corpus) -> None:
    assert read_corpus([], [], tokenizer, cache=tmp_path).fingerprint == default.fingerprint
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_the_whole_text_is_held_out(tmp_path: Path) -> None:
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    first.write_bytes(b"a" * 500)
    second.write_bytes(b"b" * 450 + b"c" * 50)
    found = read_corpus([str(first), str(second)], [], tokenizer, cache=tmp_path)
    assert train_text(found) == b"a" * 500 + b"b" * 450
    assert heldout_text(found) == b"c" * 50
    assert found.train.starts.tolist() == [0, 500]
    assert found.heldout.starts.tolist() == [0]
    assert found.name == f"{first} {second}"


@pytest.mark.parametrize("vocab_size", [256, 300])
def test_the_held_out_part_is_capped_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocab_size: int) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(corpus, "HELDOUT_LIMIT", 20)
    path = tmp_path / "text"
    path.write_bytes(b"the memory of " * 200)
    bpe = train_bpe([str(path)], vocab_size)
    found = read_corpus([str(path)], [], bpe, cache=tmp_path)
    assert found.heldout.num_bytes == bpe.num_bytes(found.heldout.tokens)
    longest_token = len(" memory")
    assert 20 - longest_token < found.heldout.num_bytes <= 20
    assert found.train.num_bytes + found.heldout.num_bytes == 2800


@given(text=st.text(min_size=40, max_size=80))
def test_no_character_is_cut_and_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text").write_text(text, encoding="utf-8", newline="")
    found = read_corpus([str(folder / "text")], [], tokenizer, cache=folder)
    assert train_text(found).decode() + heldout_text(found).decode() == text
    excess = found.heldout.num_bytes - len(text.encode()) // 20
    assert 0 <= excess <= 3


def test_bytes_that_are_no_text_are_split_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\x80" * 100)
    assert heldout_text(read_corpus([str(path)], [], tokenizer, cache=tmp_path)) == b"\x80" * 5


def test_files_may_be_held_out_instead(tmp_path: Path) -> None:
    train, heldout = tmp_path / "train.jsonl", tmp_path / "heldout"
    train.write_text('{"body": "to learn"}\n{"body": "more"}\n')
    heldout.write_text("new")
    found = read_corpus([str(train)], [str(heldout)], tokenizer, text_field="body", cache=tmp_path / "cache")
    assert train_text(found) == b"to learn\nmore\n"
    assert found.train.starts.tolist() == [0, 9]
    assert heldout_text(found) == b"new"
    assert found.name == str(train)


def test_the_fingerprint_covers_both_parts(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name * 100)
    a, b, c = (str(tmp_path / name) for name in "abc")
    choices = [([a], [b]), ([a], [c]), ([c], [b]), ([b], [a]), ([a], [])]
    found = {read_corpus(*choice, tokenizer, cache=tmp_path / "cache").fingerprint for choice in choices}
    assert len(found) == len(choices)


def test_a_text_too_short_to_split_is_refused_with_the_length_that_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a" * 39)
    with pytest.raises(InputError, match=r"has 39 tokens.*give text of 40 tokens or more, or held-out files"):
        read_corpus([str(path)], [], tokenizer, cache=tmp_path)
    path.write_bytes(b"a" * 40)
    assert heldout_text(read_corpus([str(path)], [], tokenizer, cache=tmp_path)) == b"aa"


def test_one_token_is_too_little_to_hold_out(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("a")
    (tmp_path / "text").write_text("text")
    with pytest.raises(InputError, match=r"one' has one token, too few to hold out; give two or more"):
        read_corpus([str(tmp_path / "text")], [str(tmp_path / "one")], tokenizer, cache=tmp_path)


def test_held_out_files_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"held-out files are given \(a b\) but no files to train on; give both, or neither"
    ):
        read_corpus([], ["a", "b"], tokenizer, cache=tmp_path)


def test_standard_input_cannot_be_both_parts(tmp_path: Path, give_standard_input: Callable[[bytes], None]) -> None:
    give_standard_input(b"text")
    with pytest.raises(InputError, match="standard input can be read only once"):
        read_corpus(["-"], ["-"], tokenizer, cache=tmp_path)
