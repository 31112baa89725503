from collections.abc import Callable, Iterator

import pytest
import torch

from feedback_transformer_pytorch import FeedbackTransformer
from feedback_transformer_pytorch.hf import FeedbackTransformerConfig, FeedbackTransformerForCausalLM

SIZE = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "dim_head": 4,
    "mem_len": 6,
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache_of_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where `transformers` copies remote code to."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        yield


def make_model(seq_len: int = 1, seed: int = 0, **fields: object) -> FeedbackTransformerForCausalLM:
    """A random model in float64, in evaluation mode; no norm, bias or layer weight stays at 0 or 1."""
    torch.manual_seed(seed)
    config = FeedbackTransformerConfig(**{**SIZE, "mem_len": 6, "seq_len": seq_len, "position": "relative", **fields})
    model = FeedbackTransformerForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(params=[1, 4], ids=lambda seq_len: f"S={seq_len}")
def model(request: pytest.FixtureRequest) -> FeedbackTransformerForCausalLM:
    return make_model(request.param)


@pytest.fixture
def same_as() -> Callable[[FeedbackTransformerForCausalLM], FeedbackTransformer]:
    """The package's own model with the same weights."""

    def make(model: FeedbackTransformerForCausalLM) -> FeedbackTransformer:
        own = FeedbackTransformer.from_config(model.config.feedback_config()).to(model.dtype).eval()
        own.decoder.load_state_dict(model.model.decoder.state_dict())
        own.token_emb.load_state_dict(model.model.token_emb.state_dict())
        own.to_logits.load_state_dict(model.lm_head.state_dict())
        return own

    return make
