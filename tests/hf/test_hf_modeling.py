from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from conftest import make_model
from feedback_transformer_pytorch import FeedbackTransformer, InputError
from feedback_transformer_pytorch.hf import FeedbackCache, FeedbackTransformerForCausalLM

SameAs = Callable[[FeedbackTransformerForCausalLM], FeedbackTransformer]


def tokens(batch: int = 2, length: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_logits_are_those_of_our_model(model: FeedbackTransformerForCausalLM, same_as: SameAs) -> None:
    own, x = same_as(model), tokens()
    for use_cache in (True, False):
        torch.testing.assert_close(model(x, use_cache=use_cache).logits, own(x), atol=1e-12, rtol=0)
    embedded = model(inputs_embeds=model.get_input_embeddings()(x)).logits
    torch.testing.assert_close(embedded, own(x), atol=1e-12, rtol=0)


def test_the_last_logits_do_not_depend_on_what_follows(model: FeedbackTransformerForCausalLM) -> None:
    x = tokens()
    whole = model(x, use_cache=False).logits
    for length in range(1, 16):
        for use_cache in (True, False):
            found = model(x[:, :length], use_cache=use_cache).logits
            torch.testing.assert_close(found, whole[:, :length], atol=1e-12, rtol=0)


@pytest.mark.parametrize("pieces", [[3, 4, 1, 8], [8, 8], [1] * 16, [15, 1]])
def test_pieces_give_the_logits_of_one_call(model: FeedbackTransformerForCausalLM, pieces: list[int]) -> None:
    x, cache, found = tokens(), FeedbackCache(), []
    for part in x.split(pieces, dim=1):
        found.append(model(part, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(found, 1), model(x).logits, atol=1e-12, rtol=0)
    assert cache.get_seq_length() == 16


def test_padding_is_as_if_it_were_not_there(model: FeedbackTransformerForCausalLM) -> None:
    """Left, right and inside; also when a cached text goes on with the mask of all, of the new tokens, or none."""
    rows = [tokens(1, length, seed=length)[0] for length in (14, 9, 5)]
    new = tokens(3, 6, seed=9)
    for left in (True, False):
        x, mask = torch.zeros(3, 14, dtype=torch.long), torch.zeros(3, 14, dtype=torch.long)
        for row, text in enumerate(rows):
            at = slice(14 - len(text), None) if left else slice(0, len(text))
            x[row, at], mask[row, at] = text, 1
        going_on = (torch.cat([mask, torch.ones_like(new)], 1), torch.ones_like(new), None)
        for next_mask in going_on:
            cache = FeedbackCache()
            first = model(x, attention_mask=mask, past_key_values=cache).logits
            second = torch.cat(
                [model(new[:, :1], attention_mask=None if next_mask is None else next_mask[:, : -5 or None],
                       past_key_values=cache).logits,
                 model(new[:, 1:], attention_mask=next_mask, past_key_values=cache).logits], 1
            )  # fmt: skip
            for row, text in enumerate(rows):
                expected = model(torch.cat([text, new[row]])[None]).logits[0]
                found = torch.cat([first[row][mask[row].bool()], second[row]])
                torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        whole = model(x, attention_mask=mask, use_cache=False).logits
        torch.testing.assert_close(whole[mask.bool()], first[mask.bool()], atol=1e-10, rtol=0)


def test_labels_are_shifted(model: FeedbackTransformerForCausalLM) -> None:
    x = tokens()
    labels = x.masked_fill(torch.rand(x.shape) < 0.3, -100)
    out = model(x, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    assert torch.equal(out.loss, expected)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=4)
    out = model(x, shift_labels=shifted, num_items_in_batch=7)
    total = torch.nn.functional.cross_entropy(
        out.logits.flatten(0, 1).float(), shifted.flatten(), reduction="sum", ignore_index=-100
    )
    torch.testing.assert_close(out.loss, total / 7)


def test_only_the_last_logits_can_be_asked_for(model: FeedbackTransformerForCausalLM) -> None:
    x = tokens()
    logits = model(x).logits
    assert torch.equal(model(x, logits_to_keep=3).logits, logits[:, -3:])
    assert torch.equal(model(x, logits_to_keep=torch.tensor([2, 5])).logits, logits[:, [2, 5]])


def test_a_cache_is_returned_when_it_is_wanted(model: FeedbackTransformerForCausalLM) -> None:
    x = tokens()
    assert isinstance(model(x).past_key_values, FeedbackCache)
    assert model(x, use_cache=False).past_key_values is None
    assert model.train()(x).past_key_values is None
    assert len(model(x, return_dict=False)) == 1
    assert model.eval()(x, return_dict=False)[1].get_seq_length() == 16


@pytest.mark.filterwarnings("ignore:`(gradient_check|is_gradient_check):FutureWarning")  # renamed in 5.23
def test_checkpointing_gives_the_same_gradients(model: FeedbackTransformerForCausalLM) -> None:
    x, gradients = tokens(), []
    for enable in (False, True, False):
        (model.gradient_checkpointing_enable if enable else model.gradient_checkpointing_disable)()
        assert model.is_gradient_checkpointing == model.model.decoder.recompute == enable
        model.zero_grad()
        model(x, labels=x, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for first, second in zip(gradients[0], gradients[1], strict=True):
        torch.testing.assert_close(first, second, atol=1e-12, rtol=1e-9)


def test_bf16_is_near() -> None:
    model, x = make_model(4), tokens()
    exact = model.float()(x).logits
    rounded = model.bfloat16()(x).logits
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "neither are given"),
        ({"input_ids": torch.tensor([[1]]), "inputs_embeds": torch.zeros(1, 1, 8)}, "both are given"),
        ({"input_ids": torch.tensor([[11]])}, "x holds token 11"),
        ({"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 1)}, r"attention_mask is \(1, 1\)"),
        ({"input_ids": torch.tensor([[1]]), "past_key_values": DynamicCache()}, "past_key_values is a DynamicCache"),
        ({"input_ids": torch.tensor([[1]]), "output_attentions": True}, "output_attentions is True"),
        ({"input_ids": torch.tensor([[1]]), "output_hidden_states": True}, "output_hidden_states is True"),
        ({"input_ids": torch.tensor([[1]]), "position_ids": torch.tensor([[0, 1]])}, r"position_ids is \(1, 2\)"),
        ({"input_ids": torch.tensor([[1]]).to(torch.uint8)}, "x is torch.uint8"),
    ],
)
def test_a_wrong_input_is_named(inputs: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model()(**inputs)


@pytest.mark.parametrize("starts", [[0, 1, 2, 9], [0, 5, 10], [0, 15]])
def test_packed_documents_do_not_see_each_other(model: FeedbackTransformerForCausalLM, starts: list[int]) -> None:
    """As `DataCollatorWithFlattening` packs them: the positions of each document count from 0."""
    x, ends = tokens(1), [*starts[1:], 16]
    positions = torch.cat([torch.arange(end - start) for start, end in zip(starts, ends, strict=True)])[None]
    alone = [model(x[:, start:end]).logits for start, end in zip(starts, ends, strict=True)]
    for mode in (model.train(), model.eval()):
        torch.testing.assert_close(mode(x, position_ids=positions).logits, torch.cat(alone, 1), atol=1e-12, rtol=0)
    with pytest.raises(InputError, match="several documents in a row, which no cache can hold"):
        model(x, position_ids=positions, use_cache=True)


def test_a_long_document_does_not_pad_the_short_ones(
    model: FeedbackTransformerForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [40, *[2] * 30, 1, 5, 7]
    x = torch.randint(0, 11, (1, sum(lengths)))
    read, plain = [], type(model.model.decoder).forward

    def noted(decoder: Any, embeddings: torch.Tensor, *arguments: Any, **others: Any) -> Any:
        read.append(embeddings.shape[:2].numel())
        return plain(decoder, embeddings, *arguments, **others)

    alone = torch.cat([model(part).logits for part in x.split(lengths, dim=1)], 1)
    monkeypatch.setattr(type(model.model.decoder), "forward", noted)
    found = model(x, position_ids=torch.cat([torch.arange(n) for n in lengths])[None]).logits
    torch.testing.assert_close(found, alone, atol=1e-12, rtol=0)
    assert sum(read) < 3 * x.shape[1]


def test_packed_rows_have_documents_of_their_own(model: FeedbackTransformerForCausalLM) -> None:
    x = tokens()
    positions = torch.stack([torch.arange(16), torch.arange(16) % 6])
    found = model(x, position_ids=positions).logits
    torch.testing.assert_close(found[:1], model(x[:1]).logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(found[1:, 6:12], model(x[1:, 6:12]).logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(model(x, position_ids=positions[:1]).logits, model(x).logits, atol=1e-12, rtol=0)


def test_what_the_configuration_asks_for_is_refused_too() -> None:
    with pytest.raises(InputError, match="output_hidden_states is True"):
        make_model(output_hidden_states=True)(tokens())
