import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_model
from feedback_transformer_pytorch import InputError
from feedback_transformer_pytorch.hf import FeedbackCache, FeedbackTransformerForCausalLM, cache

MODELS = {seq_len: make_model(seq_len) for seq_len in (1, 4)}


@given(
    st.sampled_from([1, 4]),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=6),
    st.booleans(),
    st.integers(1, 5),
)
@torch.no_grad()
def test_removed_tokens_leave_no_trace(
    seq_len: int, steps: list[tuple[int, int]], is_padded: bool, longest_piece: int
) -> None:
    """Read some, remove some, and so on: what follows is as if only the tokens that were kept had been read."""
    model, past = MODELS[seq_len], FeedbackCache()
    past.activate_past_recording()
    generator = torch.Generator().manual_seed(len(steps))
    text, mask = torch.zeros(2, 2, 0, dtype=torch.long)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "PIECE", longest_piece)
        for new, removed in steps:
            x = torch.randint(0, 11, (2, new), generator=generator)
            seen = torch.randint(0, 2, (2, new), generator=generator) if is_padded else torch.ones_like(x)
            text, mask = torch.cat([text, x], 1), torch.cat([mask, seen], 1)
            found = model(x, attention_mask=mask, past_key_values=past).logits
            expected = model(text, attention_mask=mask, use_cache=False).logits[:, -new:]
            torch.testing.assert_close(found[seen.bool()], expected[seen.bool()], atol=1e-10, rtol=0)
            removed = min(removed, text.shape[1])
            past.crop(torch.tensor(-removed) if len(steps) % 2 else -removed)  # 5.17 gives a tensor
            text, mask = text[:, : text.shape[1] - removed], mask[:, : mask.shape[1] - removed]
            assert past.get_seq_length() == text.shape[1]


@torch.no_grad()
def test_what_is_recorded_is_bounded(model: FeedbackTransformerForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "RECORDED", 24)
    past = FeedbackCache()
    past.activate_past_recording()
    text = torch.randint(0, 11, (1, 200))
    for part in text.split([90, *[1] * 110], dim=1):
        model(part, past_key_values=past)
        assert sum(piece.x.shape[1] for piece in past._pieces) <= 2 * 24 + cache.PIECE
    past.crop(-24)
    expected = model(text[:, :180]).logits[:, -4:]
    torch.testing.assert_close(model(text[:, 176:180], past_key_values=past).logits, expected, atol=1e-10, rtol=0)
    with pytest.raises(InputError, match="100 tokens are to be removed"):
        past.crop(-100)
    model(text, past_key_values=past)  # more than is recorded of a prompt
    past.crop(-200)
    torch.testing.assert_close(
        model(text[:, 180:184], past_key_values=past).logits, model(text[:, :184]).logits[:, -4:], atol=1e-10, rtol=0
    )


def test_the_state_has_a_constant_size(model: FeedbackTransformerForCausalLM) -> None:
    past = FeedbackCache()
    for part in torch.randint(0, 11, (2, 64)).split(5, dim=1):
        model(part, past_key_values=past)
        progress = past._progress
        assert progress.tail is None or progress.tail.shape[1] < model.config.seq_len
        assert progress.memory is None or progress.memory.keys.shape[1] <= 6


def test_without_a_record_nothing_is_removed(model: FeedbackTransformerForCausalLM) -> None:
    past = model(torch.tensor([[1, 2, 3, 4, 5]])).past_key_values
    past.crop(0)
    with pytest.raises(InputError, match="1 tokens are to be removed, and 0 are recorded"):
        past.crop(-1)
    with pytest.raises(InputError, match="tokens_to_remove is 3"):
        past.crop(3)


@torch.no_grad()
def test_rows_are_chosen_and_repeated(model: FeedbackTransformerForCausalLM) -> None:
    x, new = torch.randint(0, 11, (3, 9)), torch.randint(0, 11, (6, 2))
    mask = (torch.arange(9) >= torch.tensor([[0], [2], [6]])).long()
    for is_recorded in (False, True):
        past = FeedbackCache()
        assert past.batch_size == -1
        if is_recorded:
            past.activate_past_recording()
        model(x, attention_mask=mask, past_key_values=past)
        chosen, repeated = copy.deepcopy(past), copy.deepcopy(past)
        if is_recorded:
            copy.copy(past).crop(-3)
            assert past._pieces[-1].x.shape[1] == 9  # a copy keeps pieces of its own
        rows = torch.tensor([2, 0, 2, 1, 1, 0])
        chosen.batch_select_indices(rows)
        repeated.batch_repeat_interleave(2)
        for some, index in ((chosen, rows), (repeated, torch.tensor([0, 0, 1, 1, 2, 2]))):
            assert (some.batch_size, some.get_seq_length()) == (6, 9)
            if is_recorded:
                some.crop(-3)
            kept = 6 if is_recorded else 9
            seen = torch.cat([mask[index, :kept], torch.ones_like(new)], 1)
            expected = model(torch.cat([x[index, :kept], new], 1), attention_mask=seen).logits[:, -2:]
            torch.testing.assert_close(model(new, past_key_values=some).logits, expected, atol=1e-10, rtol=0)
    past.reset()
    assert (past.get_seq_length(), past.batch_size, past.is_initialized) == (0, -1, False)


def test_detaching_ends_the_graph(model: FeedbackTransformerForCausalLM) -> None:
    x = torch.randint(0, 11, (1, 10))
    past = model(x).past_key_values
    out = model(x, labels=x, past_key_values=past.detach())
    out.loss.backward()
    model(x, labels=x, past_key_values=past.detach()).loss.backward()
