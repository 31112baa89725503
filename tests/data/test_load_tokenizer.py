from pathlib import Path

import pytest

from feedback_transformer_pytorch.data import ByteTokenizer, load_tokenizer, train_bpe
from feedback_transformer_pytorch.errors import InputError


def test_bytes_is_the_byte_tokenizer() -> None:
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "text").write_text("the memory of the memory")
    trained = train_bpe([str(tmp_path / "text")], 260)
    path = tmp_path / "tokenizer.json"
    path.write_text(trained.to_json(), encoding="utf-8")
    assert load_tokenizer(path).fingerprint == trained.fingerprint


def test_what_cannot_be_loaded_is_named_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "damaged.json").write_text('{"model":\n')
    (tmp_path / "latin-1.json").write_bytes(b"\xe9")
    for name, message in (
        ("none.json", "none.json': no such file; give bytes, or a tokenizer.json"),
        (".", r"cannot be read \(Is a directory\); give bytes"),
        ("damaged.json", "damaged.json': the content is not a tokenizer.json"),
        ("latin-1.json", r"latin-1.json' is not a tokenizer.json \(it is not UTF-8\)"),
    ):
        with pytest.raises(InputError, match=message) as error:
            load_tokenizer(str(tmp_path / name))
        assert "\n" not in str(error.value)
