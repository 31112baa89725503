from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from conftest import make_model
from feedback_transformer_pytorch import FeedbackTransformer, InputError, generate
from feedback_transformer_pytorch.hf import FeedbackCache, FeedbackTransformerForCausalLM
from feedback_transformer_pytorch.hf.tokenizer import byte_tokenizer

SameAs = Callable[[FeedbackTransformerForCausalLM], FeedbackTransformer]


def prompt(batch: int = 1, length: int = 13, seed: int = 1) -> torch.Tensor:
    """Longer than the memory, and no whole number of segments."""
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(seed))


def greedy(model: FeedbackTransformerForCausalLM, x: torch.Tensor, count: int = 24, **options: object) -> torch.Tensor:
    found = model.generate(x, max_new_tokens=count, do_sample=False, **options)
    assert isinstance(found, torch.Tensor)
    return found


def test_greedy_is_that_of_our_generate(model: FeedbackTransformerForCausalLM, same_as: SameAs) -> None:
    x = prompt(3)
    ours = torch.stack(list(generate(same_as(model), x, max_new_tokens=24, temperature=0)), 1)
    assert torch.equal(greedy(model, x), torch.cat([x, ours], 1))
    assert torch.equal(greedy(model, x, use_cache=False), torch.cat([x, ours], 1))


def test_sampling_is_that_of_recomputation(model: FeedbackTransformerForCausalLM) -> None:
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        runs.append(
            model.generate(
                prompt(3), max_new_tokens=24, do_sample=True, top_k=7, top_p=0.95, temperature=1.3, use_cache=use_cache
            )
        )
    assert torch.equal(*runs)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"length_penalty": 0.3, "early_stopping": True}])
def test_beams_are_those_of_recomputation(model: FeedbackTransformerForCausalLM, options: dict[str, object]) -> None:
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        x, mask = prompt(2), (torch.arange(13) >= torch.tensor([[0], [4]])).long()
        runs.append(
            model.generate(
                x, attention_mask=mask, max_new_tokens=15, num_beams=4, num_return_sequences=3, use_cache=use_cache,
                **options,
            )
        )  # fmt: skip
    assert torch.equal(*runs)
    assert runs[0].shape == (6, 28)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("assistant_seq_len", [1, 4])
def test_assisted_decoding_is_greedy(
    model: FeedbackTransformerForCausalLM,
    assistant_seq_len: int,
    depth: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Past the window, and with an assistant that is right now and then: some of its tokens are removed, not all."""
    removed = []
    crop = FeedbackCache.crop

    def counted(self: FeedbackCache, tokens: int) -> None:
        removed.append(-tokens)
        crop(self, tokens)

    monkeypatch.setattr(FeedbackCache, "crop", counted)
    assistant = make_model(assistant_seq_len, num_hidden_layers=depth)
    with torch.no_grad():
        for name, parameter in assistant.named_parameters():
            if "layer_weight" not in name:
                parameter.copy_(model.state_dict()[name] + 0.05 * torch.randn_like(parameter))
    assistant.generation_config.num_assistant_tokens = 7
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    x = prompt()
    assert torch.equal(greedy(model, x, 60, assistant_model=assistant), greedy(model, x, 60))
    assert len(set(removed)) > 2


def test_prompt_lookup_is_greedy(model: FeedbackTransformerForCausalLM) -> None:
    x = prompt().repeat(1, 3)
    assert torch.equal(greedy(model, x, 40, prompt_lookup_num_tokens=5), greedy(model, x, 40))


def test_rows_of_different_lengths_are_as_alone(model: FeedbackTransformerForCausalLM) -> None:
    lengths = [13, 6, 1]
    mask = (torch.arange(13) >= 13 - torch.tensor(lengths)[:, None]).long()
    x = prompt(3) * mask
    found = greedy(model, x, attention_mask=mask)
    for row, length in enumerate(lengths):
        assert torch.equal(found[row : row + 1, 13 - length :], greedy(model, x[row : row + 1, 13 - length :]))


@pytest.mark.parametrize("is_whole_given", [True, False])
def test_a_padded_generation_goes_on(model: FeedbackTransformerForCausalLM, is_whole_given: bool) -> None:
    """From its cache, with all tokens and their mask, or with the new tokens and the mask of all."""
    lengths = [13, 6, 2]
    mask = (torch.arange(13) >= 13 - torch.tensor(lengths)[:, None]).long()
    x, past, more = prompt(3) * mask, FeedbackCache(), prompt(3, 5, seed=8)
    first = greedy(model, x, 9, attention_mask=mask, past_key_values=past)
    assert past.get_seq_length() == 21
    text = torch.cat([first, more], 1)
    mask = torch.cat([mask, torch.ones(3, 14, dtype=torch.long)], 1)
    given = text if is_whole_given else text[:, 21:]
    second = greedy(model, given, 9, attention_mask=mask, past_key_values=past)[:, -9:]
    for row, length in enumerate(lengths):
        assert torch.equal(second[row], greedy(model, text[row : row + 1, 13 - length :], 9)[0, -9:])


@pytest.mark.parametrize("size", [1, 5])
def test_prefill_in_chunks_changes_nothing(model: FeedbackTransformerForCausalLM, size: int) -> None:
    mask = (torch.arange(13) >= torch.tensor([[0], [7]])).long()
    x = prompt(2)
    found = greedy(model, x, attention_mask=mask, prefill_chunk_size=size)
    assert torch.equal(found, greedy(model, x, attention_mask=mask))


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_tokens_are_streamed(model: FeedbackTransformerForCausalLM) -> None:
    streamer = Collector()
    found = greedy(model, prompt(), streamer=streamer)
    assert streamer.ended
    assert streamer.tokens == found[0].tolist()


def test_text_is_streamed_and_stops_at_a_string() -> None:
    model, tokenizer = make_model(4, vocab_size=256), byte_tokenizer()
    inputs = tokenizer("what follows", return_tensors="pt")
    whole = greedy(model, **inputs_of(inputs), count=30)
    written = bytes(whole[0, 12:].tolist())
    stop = next(written[at : at + 2].decode() for at in range(8, 28) if max(written[at : at + 2]) < 128)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    found = greedy(model, **inputs_of(inputs), count=30, stop_strings=[stop], tokenizer=tokenizer, streamer=streamer)
    text = tokenizer.decode(found[0, 12:])
    assert stop in text
    assert found.shape[1] < whole.shape[1]
    assert "".join(streamer) == text


def inputs_of(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"x": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}


def test_embeddings_can_be_the_prompt(model: FeedbackTransformerForCausalLM) -> None:
    x = prompt(2)
    embedded = model.generate(inputs_embeds=model.get_input_embeddings()(x), max_new_tokens=10, do_sample=False)
    assert torch.equal(embedded, greedy(model, x, 10)[:, 13:])


def test_another_cache_is_refused(model: FeedbackTransformerForCausalLM) -> None:
    with pytest.raises(InputError, match="cache_implementation is 'static'"):
        greedy(model, prompt(), cache_implementation="static")
    with pytest.raises(InputError, match="past_key_values is a DynamicCache"):
        greedy(model, prompt(), past_key_values=DynamicCache())
