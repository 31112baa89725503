import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

from conftest import make_model
from feedback_transformer_pytorch import InputError
from feedback_transformer_pytorch.hf import FeedbackTransformerForCausalLM, FeedbackTransformerModel

X = torch.randint(0, 11, (2, 13), generator=torch.Generator().manual_seed(1))


def assert_same(first: FeedbackTransformerForCausalLM, second: FeedbackTransformerForCausalLM) -> None:
    """The weights to the bit, and the logits up to how products round where weights are aligned otherwise."""
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    torch.testing.assert_close(first(X).logits, second(X).logits, atol=1e-12, rtol=0)


def test_a_saved_model_is_the_same_to_the_bit(model: FeedbackTransformerForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = FeedbackTransformerForCausalLM.from_pretrained(tmp_path)
    assert (again.dtype, again.training) == (torch.float64, False)
    assert_same(again, model)


def test_shards_are_put_together(tmp_path: Path) -> None:
    model = make_model(4)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same(FeedbackTransformerForCausalLM.from_pretrained(tmp_path), model)


def test_auto_classes_know_the_model(tmp_path: Path) -> None:
    model = make_model(4)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), type(model.config))
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path), model)
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, FeedbackTransformerModel)
    torch.testing.assert_close(base(X).last_hidden_state, model.model(X).last_hidden_state, atol=1e-12, rtol=0)
    fresh = AutoModelForCausalLM.from_config(model.config)
    assert isinstance(fresh, FeedbackTransformerForCausalLM)


REMOTE = """
import sys
from transformers import AutoModelForCausalLM
if sys.argv[2] == "without":
    sys.modules["feedback_transformer_pytorch"] = None
else:
    assert "feedback_transformer_pytorch" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
model.save_pretrained(sys.argv[1] + "/again")
print(type(model).__module__, model.num_parameters())
"""


@pytest.mark.parametrize("package", ["with", "without"])
def test_remote_code_is_that_of_the_package(tmp_path: Path, package: str) -> None:
    """In a program that does not import it; and without the package, the error says what to install."""
    model = make_model(4)
    model.save_pretrained(tmp_path / "saved")
    result = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path / "saved"), package],
        capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    if package == "without":
        assert "install feedback-transformer-pytorch 0.1 with the extra hf from its source or a wheel" in result.stderr
        return
    assert result.stdout.split() == ["feedback_transformer_pytorch.hf.modeling", str(model.num_parameters())]
    names = {file.name for file in (tmp_path / "saved" / "again").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "modeling_feedback_transformer.py"}


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    model = make_model(4, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.token_emb.weight
    model.save_pretrained(tmp_path)
    again = FeedbackTransformerForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.token_emb.weight
    assert_same(again, model)


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_vocabulary_can_grow(tmp_path: Path, is_tied: bool) -> None:
    model = make_model(4, tie_word_embeddings=is_tied)
    before = model(X).logits
    model.resize_token_embeddings(15)
    assert model.config.vocab_size == model.config.feedback_config().num_tokens == 15
    assert model(X).logits.shape == (2, 13, 15)
    torch.testing.assert_close(model(X).logits[..., :11], before)
    model(torch.tensor([[14, 12]]))
    model.save_pretrained(tmp_path)
    assert_same(FeedbackTransformerForCausalLM.from_pretrained(tmp_path), model)


def test_what_is_missing_starts_as_in_a_new_model(tmp_path: Path) -> None:
    model = make_model(4, initialisation="authors")
    kept = {name: t for name, t in model.state_dict().items() if "layers.1" not in name and "lm_head" not in name}
    again = FeedbackTransformerForCausalLM.from_pretrained(None, config=model.config, state_dict=kept)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) == (name in kept) or "norm" in name, name
    layer = again.model.decoder.stack.layers[1]
    assert torch.equal(layer.attention.norm.weight, torch.ones(8, dtype=torch.float64))
    assert torch.equal(layer.feedforward.norm.bias, torch.zeros(8, dtype=torch.float64))
    assert layer.feedforward.to_out.bias.abs().max() < 32**-0.5 / 2  # the authors divide by 2 where L is 2
    assert torch.isfinite(again(X).logits).all()


def test_a_missing_mix_and_table_start_as_in_a_new_model() -> None:
    model = make_model(4, position="relative")
    kept = {name: t for name, t in model.state_dict().items() if "layer_weight" not in name and "position" not in name}
    again = FeedbackTransformerForCausalLM.from_pretrained(None, config=model.config, state_dict=kept)
    assert torch.equal(again.model.decoder.stack.layer_weight, torch.ones(3, dtype=torch.float64))
    missing = [t for name, t in again.state_dict().items() if "position" in name]
    assert missing
    assert all(torch.isfinite(t).all() and t.abs().max() > 0.1 for t in missing)


def test_two_new_models_differ() -> None:
    config = make_model(4).config
    a, b = (FeedbackTransformerForCausalLM(config) for _ in range(2))
    same = [n for (n, p), q in zip(a.named_parameters(), b.parameters(), strict=True) if torch.equal(p, q)]
    assert all("norm" in name or "layer_weight" in name for name in same)
    assert not any("_fresh_decoder" in vars(module) for model in (a, b) for module in model.modules())


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_is_taken(tmp_path: Path, device_map: object) -> None:
    model = make_model(4)
    model.save_pretrained(tmp_path)
    again = FeedbackTransformerForCausalLM.from_pretrained(tmp_path, device_map=device_map)
    torch.testing.assert_close(again(X.to(again.device)).logits.cpu(), model(X).logits)


def test_weights_can_be_loaded_in_bf16(tmp_path: Path) -> None:
    model = make_model(4)
    model.save_pretrained(tmp_path)
    again = FeedbackTransformerForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert again.generate(X, max_new_tokens=9, do_sample=False).shape == (2, 22)


def test_quantised_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="quantization_config is given, but the fast recurrence reads its weights"):
        FeedbackTransformerForCausalLM.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
        )


def test_the_shared_projection_is_saved_once(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["kv"] == "shared"
    assert [name for name in make_model().state_dict() if "to_kv" in name] == ["model.decoder.stack.to_kv.weight"]
