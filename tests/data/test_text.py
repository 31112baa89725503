import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feedback_transformer_pytorch.data import ByteTokenizer, Piece, Text, encode_text
from feedback_transformer_pytorch.data.text import Fingerprint

tokenizer = ByteTokenizer()


@given(text=st.binary(min_size=1))
def test_a_text_in_memory_is_one_document(text: bytes) -> None:
    encoded = encode_text(text, tokenizer)
    assert tokenizer.decode_bytes(encoded.tokens) == text
    assert encoded.starts.tolist() == [0]
    assert encoded.num_bytes == len(text)


@given(data=st.data(), text=st.binary(min_size=2))
def test_a_split_keeps_every_token_byte_and_document(data: st.DataObject, text: bytes) -> None:
    starts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))) | {0})
    whole = Text(tokenizer.encode(text), np.array(starts), len(text), "whole")
    cut = data.draw(st.integers(1, len(text) - 1))
    before, after = whole.split(cut, tokenizer)
    assert tokenizer.decode_bytes(before.tokens) + tokenizer.decode_bytes(after.tokens) == text
    assert (before.num_bytes, after.num_bytes) == (cut, len(text) - cut)
    assert before.starts.tolist() + (after.starts + cut).tolist() == sorted({*starts, cut})
    assert after.starts.dtype == np.int64
    assert len({whole.fingerprint, before.fingerprint, after.fingerprint}) == 3


@given(documents=st.lists(st.binary(min_size=1), min_size=1), data=st.data())
def test_a_fingerprint_does_not_depend_on_where_pieces_end(documents: list[bytes], data: st.DataObject) -> None:
    whole, cut = Fingerprint(tokenizer), Fingerprint(tokenizer)
    for document in documents:
        whole.add(Piece(document, True))
        end = data.draw(st.integers(1, len(document)))
        cut.add(Piece(document[:end], True))
        cut.add(Piece(document[end:], False))
    assert str(whole) == str(cut)
    assert whole.num_bytes == sum(map(len, documents))


def test_bytes_boundaries_and_tokenizer_each_change_the_fingerprint() -> None:
    class OtherTokenizer(ByteTokenizer):
        fingerprint = "other"

    texts = [
        ([b"ab"], tokenizer),
        ([b"ac"], tokenizer),
        ([b"a", b"b"], tokenizer),
        ([b"ab"], OtherTokenizer()),
    ]
    found = set()
    for documents, by in texts:
        fingerprint = Fingerprint(by)
        for document in documents:
            fingerprint.add(Piece(document, True))
        found.add(str(fingerprint))
    assert len(found) == len(texts)
