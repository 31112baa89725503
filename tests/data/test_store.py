import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch import files
from feedback_transformer_pytorch.data import (
    ByteTokenizer,
    Tokens,
    default_cache,
    documents,
    store,
    tokenize,
    train_bpe,
)
from feedback_transformer_pytorch.errors import InputError

tokenizer = ByteTokenizer()


class Untouchable(ByteTokenizer):
    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        raise AssertionError("the text was tokenized")


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two\\nand more"}\n')
    return str(path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@given(text=st.binary(min_size=1))
def test_any_bytes_survive(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text").write_bytes(text)
    found = tokenize([str(folder / "text")], tokenizer, cache=folder)
    assert tokenizer.decode_bytes(found.tokens) == text
    assert found.num_bytes == len(text)


def test_the_tokens_are_mapped_and_documents_known(source: str, cache: Path) -> None:
    found = tokenize([source, source], tokenizer, cache=cache)
    assert isinstance(found.tokens, np.memmap)
    assert not found.tokens.flags.writeable
    assert found.tokens.tobytes() == b"one\ntwo\nand more\n" * 2
    assert found.starts.dtype == np.int64
    assert found.starts.tolist() == [0, 4, 17, 21]
    assert found.num_bytes == 34
    assert [path.name for path in cache.iterdir()] == [found.fingerprint]


def test_bpe_tokens_are_kept_with_the_bytes_they_stand_for(source: str, cache: Path) -> None:
    pytest.importorskip("tokenizers")
    bpe = train_bpe([source], 260)
    found = tokenize([source], bpe, cache=cache)
    assert bpe.decode_bytes(found.tokens) == b"one\ntwo\nand more\n"
    assert bpe.decode_bytes(found.tokens[found.starts[1] :]) == b"two\nand more\n"
    assert found.num_bytes == bpe.num_bytes(found.tokens) == 17
    assert found.tokens.dtype == np.uint16
    assert found.fingerprint != tokenize([source], tokenizer, cache=cache).fingerprint


def test_a_text_larger_than_memory_allows_is_tokenized_bit_by_bit(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []

    class Watched(ByteTokenizer):
        def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
            batches.append([len(text) for text in texts])
            return super().encode_batch(texts)

    monkeypatch.setattr(documents, "PIECE_LEN", 100)
    monkeypatch.setattr(store, "_BATCH_BYTES", 400)
    text = b"a line of a long text\n" * 1000
    (tmp_path / "text").write_bytes(text)
    found = tokenize([str(tmp_path / "text")], Watched(), cache=cache)
    assert found.tokens.tobytes() == text
    assert found.starts.tolist() == [0]
    assert max(map(sum, batches)) < 700
    assert min(map(len, batches[:-1])) > 3


def test_known_text_is_not_tokenized_again_wherever_it_stands(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a").write_bytes(b"the same text\n")
    first = tokenize([str(tmp_path / "a")], tokenizer, cache=cache)
    shutil.copy(tmp_path / "a", tmp_path / "b")
    again = tokenize([str(tmp_path / "b")], Untouchable(), cache=cache)
    assert again.fingerprint == first.fingerprint
    assert again.tokens.tobytes() == first.tokens.tobytes()
    (tmp_path / "b").write_bytes(b"another text\n")
    with pytest.raises(AssertionError, match="tokenized"):
        tokenize([str(tmp_path / "b")], Untouchable(), cache=cache)


def test_progress_counts_both_readings(source: str, cache: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    tokenize([source], tokenizer, cache=cache, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(17, None), (17, 17)]
    calls.clear()
    tokenize([source], tokenizer, cache=cache, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(17, None)]


def test_standard_input_is_read_once_and_not_kept(
    source: str, cache: Path, give_standard_input: Callable[[bytes], None]
) -> None:
    give_standard_input(b"piped\n")
    found = tokenize([source, "-"], tokenizer, cache=cache)
    assert found.tokens.tobytes() == b"one\ntwo\nand more\npiped\n"
    assert [path.name for path in cache.iterdir()] == [found.fingerprint]
    give_standard_input(b"")
    with pytest.raises(InputError, match=r"standard input \(-\) is empty"):
        tokenize(["-"], tokenizer, cache=cache)


def test_a_pipe_is_read_once(source: str, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    for content, expected in ((b'{"text": "piped"}\n', "one\ntwo\nand more\npiped\n"), (b"", None)):
        with ThreadPoolExecutor() as writer:  # opening a pipe waits for its other end
            written = writer.submit(path.write_bytes, content)
            if expected is None:
                with pytest.raises(InputError, match=r"pipe.jsonl' is empty"):
                    tokenize([source, str(path)], tokenizer, cache=cache)
            else:
                found = tokenize([source, str(path)], tokenizer, cache=cache)
                assert found.tokens.tobytes().decode() == expected
            written.result()
    assert [entry.name for entry in cache.iterdir()] == [found.fingerprint]


def test_a_pipe_that_is_given_twice_is_refused(cache: Path, tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    for source, name in (("-", "standard input"), (pipe, "a pipe")):
        with pytest.raises(InputError, match=f"{source} is given 2 times; {name} can be read only once: give"):
            tokenize([source, source], tokenizer, cache=cache)


def test_two_at_the_same_time_both_succeed(source: str, cache: Path) -> None:
    def other_process(done: int, total: int | None) -> None:
        if total is not None:
            tokenize([source], tokenizer, cache=cache)

    found = tokenize([source], tokenizer, cache=cache, on_progress=other_process)
    assert found.tokens.tobytes() == b"one\ntwo\nand more\n"
    assert [path.name for path in cache.iterdir()] == [found.fingerprint]


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"before\n")
    with pytest.raises(InputError, match="changed while it was read; run again"):
        tokenize([str(path)], tokenizer, cache=cache, on_progress=lambda *_: path.write_bytes(b"after\n") and None)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "index.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{}")])
def test_a_damaged_cache_is_named_with_what_to_delete(
    source: str, cache: Path, name: str, damage: Callable[[Path], object]
) -> None:
    folder = cache / tokenize([source], tokenizer, cache=cache).fingerprint
    damage(folder / name)
    with pytest.raises(InputError, match=f"{name} is damaged .*; delete the folder {folder} and run again"):
        tokenize([source], tokenizer, cache=cache)


@pytest.mark.parametrize("index", [b"\xff", b"[]", b'{"tokens": 17, "documents": "2", "bytes": 17}'])
def test_an_index_without_counts_is_damaged(source: str, cache: Path, index: bytes) -> None:
    path = cache / tokenize([source], tokenizer, cache=cache).fingerprint / "index.json"
    assert json.loads(path.read_bytes()) == {"tokens": 17, "documents": 2, "bytes": 17}
    path.write_bytes(index)
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        tokenize([source], tokenizer, cache=cache)


@pytest.mark.parametrize(("place", "call"), [(files.os, "fsync"), (Path, "rename")])
def test_a_failed_write_leaves_nothing(source: str, cache: Path, place: object, call: str) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        mock.patch.object(place, call, side_effect=full),
        pytest.raises(InputError, match="cannot be written: No space left on device"),
    ):
        tokenize([source], tokenizer, cache=cache)
    assert list(cache.iterdir()) == []
    assert tokenize([source], tokenizer, cache=cache).num_bytes == 17


def test_a_cache_that_cannot_be_made_is_named(source: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/cache cannot be written"):
        tokenize([source], tokenizer, cache=tmp_path / "file" / "cache")


def test_the_default_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "feedback-transformer"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "feedback-transformer"
