from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from conftest import make_model
from feedback_transformer_pytorch.hf import FeedbackCache, FeedbackTransformerForCausalLM

# The libraries warn of what they do themselves; our own warnings are errors still.
pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:(transformers|accelerate|peft|torch)\..*")

X = torch.randint(0, 11, (2, 13), generator=torch.Generator().manual_seed(1))
PERIODIC = torch.arange(16 * 40).reshape(40, 16) % 7


def arguments(tmp_path: Path, max_steps: int = 8, learning_rate: float = 2e-2) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(tmp_path), max_steps=max_steps, learning_rate=learning_rate, per_device_train_batch_size=4,
        report_to=[], save_strategy="no", logging_steps=1, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip


def rows(texts: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": text, "labels": text, "attention_mask": torch.ones_like(text)} for text in texts]


def test_the_trainer_trains_and_evaluates(tmp_path: Path) -> None:
    model = make_model(4).float()
    trainer = Trainer(
        model=model, args=arguments(tmp_path), train_dataset=rows(PERIODIC), eval_dataset=rows(PERIODIC[:3])
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    trainer.save_model(str(tmp_path / "saved"))
    again = FeedbackTransformerForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(X).logits, model.eval()(X).logits)


class Carrying(Trainer):
    """Reads one text after another: an update goes on where the one before ended."""

    past: FeedbackCache | None = None

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        out = model(**inputs, past_key_values=self.past, use_cache=True)
        self.past = out.past_key_values.detach()
        return out.loss


def test_segments_are_carried_between_updates(tmp_path: Path) -> None:
    """With a learning rate of 0, the losses of the updates are those of the parts of one long text."""
    model = make_model(4).float()
    trainer = Carrying(
        model=model,
        args=arguments(tmp_path, max_steps=4, learning_rate=0.0),
        train_dataset=rows(PERIODIC[:1].repeat(16, 1)),
    )
    trainer.train()
    text = PERIODIC[:1].repeat(1, 4)
    logits = model.eval()(text).logits.detach()
    found = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    for part, loss in enumerate(found):
        at = slice(16 * part, 16 * part + 15)
        expected = torch.nn.functional.cross_entropy(logits[0, at], text[0, 16 * part + 1 : 16 * part + 16])
        assert loss == pytest.approx(expected.item(), abs=2e-3)
    assert len(found) == 4


@pytest.mark.filterwarnings("ignore:the fused recurrence falls back")
def test_lora_trains_merges_saves_and_loads(tmp_path: Path) -> None:
    model = make_model(4)
    plain = model(X).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["to_q", "to_kv", "to_out"], task_type="CAUSAL_LM"))
    torch.testing.assert_close(adapted(input_ids=X).logits, plain, atol=1e-12, rtol=0)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        out = adapted(input_ids=X, labels=X, use_cache=False)
        losses.append(out.loss.item())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    trained = adapted.eval()(input_ids=X).logits
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(4), tmp_path)
    torch.testing.assert_close(loaded(input_ids=X).logits, trained, atol=1e-12, rtol=0)
    text = loaded.generate(input_ids=X, max_new_tokens=12, do_sample=False)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, FeedbackTransformerForCausalLM)
    torch.testing.assert_close(merged(X).logits, trained, atol=1e-10, rtol=0)
    assert torch.equal(merged.generate(X, max_new_tokens=12, do_sample=False), text)


@pytest.mark.parametrize("options", [{"target_modules": ["to_q", "token_emb"]}, {"trainable_token_indices": [1, 2]}])
def test_adapters_of_the_embedding_are_taken(options: dict[str, Any]) -> None:
    model = make_model(1)
    plain = model(X).logits
    adapted = get_peft_model(
        model, LoraConfig(**{"r": 2, "target_modules": ["to_q"], "task_type": "CAUSAL_LM", **options})
    )
    out = adapted(input_ids=X, labels=X)
    torch.testing.assert_close(out.logits, plain, atol=1e-12, rtol=0)
    out.loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert any("token_emb" in name for name in trained)
