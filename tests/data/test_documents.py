import errno
import gzip
import json
import lzma
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.data import Piece, documents, is_pipe, read_pieces
from feedback_transformer_pytorch.errors import InputError, MissingExtraError


def read_text(sources: list[str], **options: str) -> bytes:
    return b"".join(piece.text for piece in read_pieces(sources, **options))


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
def test_standard_input_stands_where_it_is_named(give_standard_input: Callable[[bytes], None]) -> None:
    give_standard_input(b"piped\n")
    assert read_text(["a.txt", "-", "b.txt"]) == b"ay\npiped\nbee\n"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "no text was given"),
        (["a.txt", "none.txt"], "'none.txt': no such file"),
        (["*.csv"], r"'\*\.csv' matches no file"),
        (["dee?"], r"'dee\?' matches no file"),
        (["deep"], r"'deep' is a directory without a saved dataset; give its files, for example 'deep/\*\.txt'"),
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
def test_a_folder_that_may_not_be_looked_into_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", forbidden)
    monkeypatch.setattr(Path, "is_fifo", forbidden)
    for look in (is_pipe, lambda source: read_text([source])):
        with pytest.raises(InputError, match=r"'deep/a.txt' cannot be read \(Permission denied\); give a file that"):
            look("deep/a.txt")


def test_empty_standard_input_is_refused(give_standard_input: Callable[[bytes], None]) -> None:
    give_standard_input(b"")
    with pytest.raises(InputError, match=r"standard input \(-\) is empty"):
        read_text(["-"])


@pytest.mark.parametrize("name", ["text.gz", "text.xz", "text.jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut short", "flipped", "plain text"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    whole = (gzip if name.endswith("gz") else lzma).compress(b'{"text": "the quick brown fox"}\n' * 50)
    middle = len(whole) // 2
    damaged = {
        "cut short": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
        "plain text": b"the quick brown fox",
    }[damage]
    path = tmp_path / name
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"is not a complete {re.escape(path.suffix)} file"):
        read_text([str(path)])


@given(
    text=st.one_of(st.binary(min_size=1), st.text("aé€😀\n", min_size=1).map(str.encode)),
    piece_len=st.integers(1, 9),
    suffix=st.sampled_from(["", ".gz", ".xz"]),
)
def test_pieces_are_the_text_cut_after_line_breaks_and_within_no_character(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, piece_len: int, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("text") / f"text{suffix}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](text))
    with mock.patch.object(documents, "PIECE_LEN", piece_len):
        pieces = list(read_pieces([str(path)]))
    assert b"".join(piece.text for piece in pieces) == text
    assert [piece.starts_document for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert all(piece.text.endswith(b"\n") for piece in pieces[:-1] if b"\n" in piece.text)
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    for piece in pieces:
        piece.text.decode()


def test_a_large_file_comes_in_pieces_of_about_a_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"a line of text\n" * 300_000)
    sizes = [len(piece.text) for piece in read_pieces([str(path)])]
    assert len(sizes) > 3
    assert max(sizes) <= 2**20 + 15


def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "ONE.JSONL.GZ"
    path.write_bytes(gzip.compress(b'{"text": "one"}'))
    assert b"".join(piece.text for piece in read_pieces([str(path)])) == b"one\n"


def test_each_file_is_a_document(folder: Path) -> None:
    assert list(read_pieces(["a.txt", "c.gz"])) == [Piece(b"ay\n", True), Piece(b"sea\n", True)]


@pytest.mark.parametrize("name", ["text.jsonl", "text.ndjson", "text.jsonl.gz", "text.ndjson.xz"])
def test_each_json_line_is_a_document_that_ends_in_a_line_break(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = b'{"text": "one"}\n\n{"text": ""}\r\n{"id": 3, "text": "two\\n"}\n{"text": "\xc3\xa9\\ud800"}'
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(lines))
    assert list(read_pieces([str(path)])) == [
        Piece(b"one\n", True),
        Piece(b"two\n", True),
        Piece("é?\n".encode(), True),
    ]


def test_the_text_of_json_lines_may_be_in_another_field(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "no", "body": "yes"}\n')
    assert read_text([str(path)], text_field="body") == b"yes\n"


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_text_survives_json_lines(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with mock.patch.object(documents, "PIECE_LEN", 5):
        pieces = list(read_pieces([str(path)]))
    assert sum(piece.starts_document for piece in pieces) == len(texts)
    assert b"".join(piece.text for piece in pieces).decode() == "".join(
        text if text.endswith("\n") else text + "\n" for text in texts
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', r"line 2 is not JSON \(Expecting value\); give one JSON object in each line"),
        (b'{"text": "\xff"}', r"line 2 is not JSON \(.*invalid start byte\)"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b'"text"', "line 2 is str, not a JSON object"),
        (
            b'{"id": 1, "body": ""}',
            r"line 2 has no field 'text' \(its fields: 'id', 'body'\); give the right field as --text-field",
        ),
        (b"{}", r"line 2 has no field 'text' \(its fields: none\)"),
        (b'{"text": 7}', "line 2 has int in 'text', not a string; give another --text-field"),
    ],
)
def test_a_bad_json_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"text\.jsonl', {message}"):
        read_text([str(path)])


def test_json_lines_without_text_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="is empty"):
        read_text([str(path)])


def test_a_dataset_without_the_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'feedback-transformer-pytorch\[datasets\]'"):
        read_text([str(tmp_path)])


def save_dataset(folder: Path, **columns: list[object]) -> None:
    """Saves the columns as folder/rows and as the only splits of folder/train and folder/test."""
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    # To make a fingerprint of its own, `datasets` pickles the table, which not every version of dill can.
    dataset = datasets.Dataset(pyarrow.table(columns), fingerprint="rows")
    dataset.save_to_disk(str(folder / "rows"))
    for split in ("train", "test"):
        datasets.DatasetDict({split: dataset}).save_to_disk(str(folder / split))


def test_each_row_of_a_saved_dataset_is_a_document(tmp_path: Path) -> None:
    save_dataset(tmp_path, text=["one", "", "two\n"], id=[1, 2, 3])
    for name in ("rows", "train"):
        assert list(read_pieces([str(tmp_path / name)])) == [Piece(b"one\n", True), Piece(b"two\n", True)]


def test_a_dataset_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    save_dataset(tmp_path, text=["one"], id=[1])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    for name, text_field, message in (
        ("rows", "body", r"rows' has no field 'body' \(its fields: 'text', 'id'\)"),
        ("rows", "id", "rows', row 1 has int in 'id', not a string"),
        ("test", "text", r"test' has the splits \['test'\], not 'train'; give the directory of one of them"),
        ("broken", "text", "broken' is not a complete dataset"),
    ):
        with pytest.raises(InputError, match=message):
            read_text([str(tmp_path / name)], text_field=text_field)
