import gzip
import io
import lzma
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.data import Corpus, default_corpus, read_corpus, read_text
from feedback_transformer_pytorch.errors import InputError


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return default_corpus()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two texts, a compressed copy of each kind, and things that cannot be read."""
    monkeypatch.chdir(tmp_path)
    Path("b.txt").write_bytes(b"bee\n")
    Path("a.txt").write_bytes(b"ay\n")
    Path("c.gz").write_bytes(gzip.compress(b"sea\n"))
    Path("d.xz").write_bytes(lzma.compress(b"dee\n"))
    Path("empty.log").touch()
    Path("deep/er").mkdir(parents=True)
    Path("deep/er/e.txt").write_bytes(b"e\n")
    return tmp_path


def give_standard_input(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text)))


def paragraphs(text: bytes) -> set[str]:
    return {" ".join(paragraph.split()) for paragraph in text.decode().split("\n\n")}


def test_default_corpus_is_a_megabyte_or_two_of_english_with_a_tenth_held_out(corpus: Corpus) -> None:
    size = len(corpus.train) + len(corpus.heldout)
    assert 1_500_000 < size < 3_000_000
    assert len(corpus.heldout) / size == pytest.approx(0.1, abs=0.02)
    assert corpus.train.count(b" the ") > 5_000
    assert corpus.name.startswith("standard library of Python 3.")


def test_no_paragraph_of_the_default_corpus_is_on_both_sides(corpus: Corpus) -> None:
    assert not paragraphs(corpus.train) & paragraphs(corpus.heldout)


def test_both_parts_of_the_default_corpus_have_both_kinds_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    topics, docstrings = ([f"{kind} {n}" for n in range(10)] for kind in ("topic", "docstring"))
    monkeypatch.setattr("feedback_transformer_pytorch.data.text.standard_library_text", lambda: (topics, docstrings))
    corpus = default_corpus()
    assert corpus.train.decode() == "\n\n".join(topics[:9] + docstrings[:9]) + "\n"
    assert corpus.heldout == b"topic 9\n\ndocstring 9\n"


def test_half_a_surrogate_pair_in_a_docstring_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback_transformer_pytorch.data.text.standard_library_text", lambda: (["a", "\ud800"], []))
    assert default_corpus().heldout == b"?\n"


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        (["b.txt", "a.txt"], b"bee\nay\n"),
        (["a.txt", "a.txt"], b"ay\nay\n"),
        (["*.txt"], b"ay\nbee\n"),
        (["[cd].*"], b"sea\ndee\n"),
        (["**/*.txt"], b"ay\nbee\ne\n"),
        (["d*", "c.gz"], b"dee\nsea\n"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_sources_are_joined_in_order_and_globs_sorted(sources: list[str], text: bytes) -> None:
    assert read_text(sources) == text


def test_absolute_globs_work(folder: Path) -> None:
    assert read_text([str(folder / "*.txt")]) == b"ay\nbee\n"


@pytest.mark.usefixtures("folder")
def test_a_file_whose_name_looks_like_a_glob_is_itself() -> None:
    Path("[ab].txt").write_bytes(b"literal\n")
    assert read_text(["[ab].txt"]) == b"literal\n"


@pytest.mark.usefixtures("folder")
def test_standard_input_stands_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    give_standard_input(monkeypatch, b"piped\n")
    assert read_text(["a.txt", "-", "b.txt"]) == b"ay\npiped\nbee\n"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "no text was given"),
        (["a.txt", "none.txt"], "'none.txt': no such file"),
        (["*.csv"], r"'\*\.csv' matches no file"),
        (["dee?"], r"'dee\?' matches no file"),
        (["deep"], r"'deep' is a directory; give its files, for example 'deep/\*\.txt'"),
        (["empty.log"], "'empty.log' is empty"),
        (["a.txt/b.txt"], r"'a\.txt/b\.txt' cannot be read \(Not a directory\)"),
        (["-", "a.txt", "-"], "- is given 2 times"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_read_is_named_in_one_line(sources: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_text(sources)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value), "what to do comes after the semicolon"


@pytest.mark.usefixtures("folder")
def test_empty_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    give_standard_input(monkeypatch, b"")
    with pytest.raises(InputError, match=r"standard input \(-\) is empty"):
        read_text(["-"])


@pytest.mark.parametrize("name", ["text.gz", "text.xz"])
@pytest.mark.parametrize("damage", ["cut short", "flipped", "plain text"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    whole = (gzip if name.endswith("gz") else lzma).compress(b"the quick brown fox " * 50)
    middle = len(whole) // 2
    damaged = {
        "cut short": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
        "plain text": b"the quick brown fox",
    }[damage]
    path = tmp_path / name
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"is not a whole {re.escape(path.suffix)} file"):
        read_text([str(path)])


def test_the_end_of_the_whole_text_is_held_out(tmp_path: Path) -> None:
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    first.write_bytes(b"a" * 500)
    second.write_bytes(b"b" * 470 + b"c" * 30)
    corpus = read_corpus([str(first), str(second)], heldout_fraction=0.03)
    assert corpus.train == b"a" * 500 + b"b" * 470
    assert corpus.heldout == b"c" * 30
    assert corpus.name == f"{first} {second}"


def test_the_held_out_part_is_capped(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a" * 1000)
    assert len(read_corpus([str(path)], heldout_limit=20).heldout) == 20
    assert len(read_corpus([str(path)]).heldout) == 50


@given(text=st.text(min_size=40, max_size=80), fraction=st.floats(0.1, 0.5))
def test_no_character_is_cut_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, text: str, fraction: float
) -> None:
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(text, encoding="utf-8", newline="")
    corpus = read_corpus([str(path)], heldout_fraction=fraction)
    assert corpus.train.decode() + corpus.heldout.decode() == text
    excess = len(corpus.heldout) - int(len(text.encode()) * fraction)
    assert 0 <= excess <= 3


def test_bytes_that_are_no_text_are_split_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\x80" * 100)
    assert len(read_corpus([str(path)], heldout_fraction=0.1).heldout) == 10


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        read_corpus(["unread.txt"], heldout_fraction=fraction)


def test_a_limit_that_leaves_nothing_to_predict_is_refused() -> None:
    with pytest.raises(InputError, match="heldout_limit is 1"):
        read_corpus(["unread.txt"], heldout_limit=1)


def test_a_text_too_short_to_split_is_refused_with_the_length_that_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a" * 39)
    with pytest.raises(InputError, match=r"has 39 bytes.*give 40 bytes or more"):
        read_corpus([str(path)])
    path.write_bytes(b"a" * 40)
    assert read_corpus([str(path)]).heldout == b"aa"
