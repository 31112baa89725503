import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.data import ByteTokenizer, Tokenizer
from feedback_transformer_pytorch.errors import InputError

tokenizer: Tokenizer = ByteTokenizer()


@given(st.text())
def test_text_survives_the_round_trip(text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.num_bytes(tokens) == len(text.encode())


@given(st.binary())
def test_tokens_are_the_bytes(raw: bytes) -> None:
    tokens = tokenizer.encode(raw)
    assert tokens.dtype == np.uint8
    assert tokens.tolist() == list(raw)
    assert tokenizer.num_tokens == 256


@given(st.binary())
def test_any_bytes_decode_alike_at_once_and_one_by_one(raw: bytes) -> None:
    decoder = tokenizer.stream_decoder()
    streamed = "".join([*map(decoder.push, raw), decoder.finish()])
    assert streamed == tokenizer.decode(raw) == raw.decode(errors="replace")


def test_a_character_is_printed_with_its_last_byte() -> None:
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(token) for token in "aé€".encode()] == ["a", "", "é", "", "", "€"]
    assert decoder.finish() == ""


def test_a_character_cut_short_ends_in_a_replacement() -> None:
    decoder = tokenizer.stream_decoder()
    assert decoder.push("é".encode()[0]) == ""
    assert decoder.finish() == "\ufffd"


@pytest.mark.parametrize("tokens", [[104, 105], np.array([104, 105]), torch.tensor([104, 105])])
def test_decode_takes_what_a_model_gives(tokens: object) -> None:
    assert tokenizer.decode(tokens) == "hi"


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        tokenizer.decode([256])


def test_tokens_may_become_a_tensor_without_a_copy() -> None:
    tokens = tokenizer.encode(b"abc")
    torch.from_numpy(tokens)[0] = 120
    assert tokenizer.decode(tokens) == "xbc"


def test_undecodable_bytes_of_the_command_line_come_back() -> None:
    argument = b"caf\xe9".decode(errors="surrogateescape")
    assert tokenizer.encode(argument).tobytes() == b"caf\xe9"


def test_other_surrogates_are_refused_with_their_place() -> None:
    with pytest.raises(InputError, match=r"'\\ud800' at position 2"):
        tokenizer.encode("ab\ud800")


@given(st.lists(st.binary()))
def test_a_batch_is_its_texts_one_by_one(batch: list[bytes]) -> None:
    tokens = tokenizer.encode_batch(batch)
    assert [tokenizer.decode_bytes(text) for text in tokens] == batch
    assert all(text.dtype == tokenizer.dtype for text in tokens)


@given(st.binary())
def test_bytes_come_back_from_whatever_holds_the_tokens(raw: bytes) -> None:
    for tokens in (list(raw), np.array(list(raw), np.int64), tokenizer.encode(raw)[::1], torch.tensor(list(raw))):
        assert tokenizer.decode_bytes(tokens) == raw


def test_bytes_need_no_tokenizer_json() -> None:
    assert tokenizer.to_json() is None
    assert tokenizer.fingerprint == "bytes"
