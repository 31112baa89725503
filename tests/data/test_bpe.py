import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.data import BpeTokenizer, Tokenizer, train_bpe
from feedback_transformer_pytorch.errors import InputError, MissingExtraError

pytest.importorskip("tokenizers")
TEXT = "The café's memory, the feedback memory — and the mémoire.\n\n    for token in the_tokens:\n" * 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(source: str) -> Tokenizer:
    return train_bpe([source], 300)


texts = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.text("the mémoi\n\r\t 😀'"))


@given(text=texts)
def test_any_text_survives_and_its_bytes_are_counted_exactly(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode_bytes(tokens) == text.encode()
    assert tokenizer.decode(tokens) == text
    assert tokenizer.num_bytes(tokens) == len(text.encode())
    assert tokens.dtype == np.uint16


@given(tokens=st.lists(st.integers(0, 299)))
def test_any_tokens_decode_alike_at_once_and_one_by_one(tokenizer: Tokenizer, tokens: list[int]) -> None:
    decoder = tokenizer.stream_decoder()
    streamed = "".join([*map(decoder.push, tokens), decoder.finish()])
    assert streamed == tokenizer.decode(tokens) == tokenizer.decode_bytes(tokens).decode(errors="replace")
    assert tokenizer.num_bytes(np.array(tokens, np.uint16)) == len(tokenizer.decode_bytes(tokens))


@given(batch=st.lists(texts))
def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer, batch: list[str]) -> None:
    together = tokenizer.encode_batch([text.encode() for text in batch])
    assert [tokens.tolist() for tokens in together] == [tokenizer.encode(text).tolist() for text in batch]


def test_training_finds_what_is_frequent_and_gives_the_same_again(tokenizer: Tokenizer, source: str) -> None:
    assert tokenizer.num_tokens == 300
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 2
    assert train_bpe([source], 300).to_json() == tokenizer.to_json()


def test_json_gives_the_same_tokenizer(tokenizer: Tokenizer, source: str) -> None:
    again = BpeTokenizer(tokenizer.to_json())
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert train_bpe([source], 299).fingerprint != tokenizer.fingerprint


def test_a_text_without_pairs_gives_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("ab")
    assert train_bpe([str(tmp_path / "text")], 500).num_tokens == 256


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="vocabulary size is 255; give 256 or more"):
        train_bpe(["unread.txt"], 255)


def test_text_that_is_not_utf_8_is_refused_where_it_is_met(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = b"au caf\xe9 du coin"
    path = tmp_path / "latin-1.txt"
    path.write_bytes(text)
    for encode in (
        lambda: tokenizer.encode(text),
        lambda: tokenizer.encode(text.decode(errors="surrogateescape")),
        lambda: tokenizer.encode_batch([text]),
        lambda: train_bpe([str(path)], 300),
    ):
        with pytest.raises(InputError, match="has the byte 0xe9 after b'au caf', which is not UTF-8; convert"):
            encode()


def test_a_source_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InputError, match="'none.txt': no such file"):
        train_bpe(["none.txt"], 300)


def test_special_tokens_stand_for_their_own_bytes(tokenizer: Tokenizer) -> None:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec = json.loads(tokenizer.to_json())
    spec["added_tokens"] = [{"id": 300, "content": "<é>", **special}]
    extended = BpeTokenizer(json.dumps(spec))
    tokens = extended.encode("the <é> memory")
    assert 300 in tokens
    assert extended.num_tokens == 301
    assert extended.decode(tokens) == "the <é> memory"
    assert extended.num_bytes(tokens) == len("the <é> memory".encode())


def test_padding_and_truncation_are_left_out(tokenizer: Tokenizer) -> None:
    spec = json.loads(tokenizer.to_json())
    spec["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    plain = BpeTokenizer(json.dumps(spec))
    assert plain.decode(plain.encode(TEXT)) == TEXT
    assert plain.fingerprint == tokenizer.fingerprint


def test_a_large_vocabulary_has_wider_tokens(tokenizer: Tokenizer) -> None:
    spec = json.loads(tokenizer.to_json())
    spec["model"]["vocab"] |= {"a" * 20: 2**16}
    wide = BpeTokenizer(json.dumps(spec))
    assert wide.dtype == np.uint32
    assert wide.decode_bytes([2**16, 300]) == b"a" * 20  # no token has the number 300
    spec["model"]["vocab"] |= {"a" * 20: 2**16 - 1}
    assert BpeTokenizer(json.dumps(spec)).dtype == np.uint16


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False}


def test_other_ways_to_split_are_accepted(tokenizer: Tokenizer) -> None:
    spec = json.loads(tokenizer.to_json())
    digits = {"type": "Digits", "individual_digits": True}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [SPLIT, digits, BYTE_LEVEL]}
    other = BpeTokenizer(json.dumps(spec))
    assert other.decode(other.encode(TEXT + "1234")) == TEXT + "1234"


def removes_space(spec: dict[str, Any]) -> None:
    removing = SPLIT | {"behavior": "Removed"}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [removing, BYTE_LEVEL]}


def strips(spec: dict[str, Any]) -> None:
    flags = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": True}
    spec["added_tokens"] = [{"id": 300, "content": "<mask>", **flags}]


def lacks_a_byte(spec: dict[str, Any]) -> None:
    del spec["model"]["vocab"]["~"]


def is_another_model(spec: dict[str, Any]) -> None:
    spec["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda spec: spec.update(normalizer={"type": "Lowercase"}), r"has a normalizer \(Lowercase\)"),
        (lambda spec: spec.update(decoder=None), "has no byte-level decoder"),
        (lambda spec: spec.update(pre_tokenizer=None), "ends splitting with none, not ByteLevel"),
        (lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True), "adds a space before the text"),
        (lambda spec: spec["model"].update(dropout=0.1), r"has dropout 0\.1"),
        (lambda spec: spec["model"].update(end_of_word_suffix="</w>"), "has end_of_word_suffix '</w>'"),
        (removes_space, r"splits the text with Split \(Removed\)"),
        (strips, "drops the space beside '<mask>'"),
        (lacks_a_byte, "has no token for 1 of the 256 bytes"),
        (is_another_model, "is of type WordLevel, not BPE"),
    ],
)
def test_a_tokenizer_that_may_change_the_text_is_refused_with_the_reason(
    tokenizer: Tokenizer, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    spec = json.loads(tokenizer.to_json())
    change(spec)
    with pytest.raises(InputError, match=f"the tokenizer {reason}, so its tokens may not give back"):
        BpeTokenizer(json.dumps(spec))


@pytest.mark.parametrize("content", ["", "{}", '{"model": 1}', "no JSON"])
def test_what_is_no_tokenizer_json_is_refused_in_one_line(content: str) -> None:
    with pytest.raises(InputError, match="is not a tokenizer.json") as error:
        BpeTokenizer(content)
    assert "\n" not in str(error.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'feedback-transformer-pytorch\[train\]'"):
        BpeTokenizer("{}")
