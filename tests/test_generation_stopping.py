"""Stop sequences and a token that ends the text: each row by itself."""

from typing import Any

import pytest
import torch

from feedback_transformer_pytorch import FeedbackTransformer, InputError, generate
from feedback_transformer_pytorch.generation import NO_TOKEN
from feedback_transformer_pytorch.generation.stopping import Stopping
from test_generation_recomputed import FIELDS


def test_a_text_ends_with_one_of_the_sequences() -> None:
    text = torch.tensor([[1, 2, 3], [2, 3, 1], [0, 0, 4]])
    assert Stopping([[2, 3], [1]], end_of_text=4).ends(text).tolist() == [True, True, True]
    assert Stopping([[2, 3]]).ends(text).tolist() == [True, False, False]
    assert Stopping([[9, 1, 2, 3]]).ends(text).tolist() == [False] * 3
    assert Stopping().ends(text).tolist() == [False] * 3


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("seq_len", [1, 3])
def test_a_row_ends_while_others_go_on(seq_len: int, length: int) -> None:
    """Rows are cut where each first holds a stop sequence of its own; what comes before is unchanged."""
    model = FeedbackTransformer(**FIELDS, seq_len=seq_len).double().eval()
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    options: dict[str, Any] = {"max_new_tokens": 25, "temperature": 2.0}
    free = torch.stack(list(generate(model, prompt, **options, generator=torch.Generator().manual_seed(1))), 1)
    stop = [free[0, 4 : 4 + length].tolist(), free[1, 9 : 9 + length].tolist()]
    going = generate(model, prompt, **options, stop=stop, generator=torch.Generator().manual_seed(1))
    found = torch.stack(list(going), 1)
    for row, texts in enumerate(free.tolist()):
        ends = [n for n in range(length, 26) if texts[n - length : n] in stop]
        end = ends[0] if ends else 25
        assert found[row, :end].tolist() == texts[:end]
        assert found[row, end:].eq(NO_TOKEN).all()
        assert bool(going.ended[row]) == bool(ends)


def test_the_iterator_stops_when_all_rows_have_ended() -> None:
    model = FeedbackTransformer(**FIELDS).eval()
    with torch.no_grad():
        model.to_logits.bias[7] = 100.0
    going = generate(model, torch.tensor([[1], [2]]), max_new_tokens=9, end_of_text=7)
    assert [token.tolist() for token in going] == [[7, 7]]
    assert going.ended.all()


def test_what_the_prompt_holds_does_not_stop() -> None:
    model = FeedbackTransformer(**FIELDS).eval()
    with torch.no_grad():
        model.to_logits.bias[7] = 100.0
    assert len(list(generate(model, torch.tensor([[1, 7]]), max_new_tokens=9, stop=[[7, 7]]))) == 2


def test_an_empty_stop_sequence_is_named() -> None:
    with pytest.raises(InputError, match=r"stop has an empty sequence \(number 1\)"):
        generate(FeedbackTransformer(**FIELDS), torch.tensor([[1]]), max_new_tokens=1, stop=[[1], []])


@pytest.mark.parametrize("stop", [".", [3]])
def test_what_is_no_stop_sequence_is_named(stop: Any) -> None:
    with pytest.raises(InputError, match=r"stop is .*; it must be sequences of tokens, such as \[\[46, 32\]\]"):
        generate(FeedbackTransformer(**FIELDS), torch.tensor([[1]]), max_new_tokens=1, stop=stop)
