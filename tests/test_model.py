import abc
import copy
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from feedback_transformer_pytorch import FeedbackDecoder, FeedbackTransformer, InputError, Memory, generate
from feedback_transformer_pytorch.generation import Reader

SMALL: dict[str, Any] = {"num_tokens": 7, "dim": 8, "depth": 2, "mem_len": 3, "heads": 2, "dim_head": 4}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_first_example_of_the_page_of_0_0_11(device: str) -> None:
    model = FeedbackTransformer(
        num_tokens=20000,
        dim=512,
        depth=6,
        seq_len=2,
        mem_len=256,
        dim_head=64,
        heads=8,
        attn_dropout=0.1,
        ff_dropout=0.1,
    ).to(device)
    x = torch.randint(0, 20000, (2, 64)).to(device)
    assert model(x).shape == (2, 64, 20000)


@pytest.mark.parametrize("device", DEVICES)
def test_second_example_of_the_page_of_0_0_11(device: str) -> None:
    model = FeedbackTransformer(num_tokens=20000, dim=512, depth=6, seq_len=32, mem_len=256, keep_last_hidden=True).to(
        device
    )
    x1, x2, x3 = torch.randint(0, 20000, (3, 2, 256)).to(device)
    with torch.no_grad():
        _, mem1 = model(x1, return_memory=True)
        _, mem2 = model(x2, memory=mem1, return_memory=True)
        out3, _mem3 = model(x3, memory=mem2, return_memory=True)
    assert out3.shape == (2, 256, 20000)


def test_memory_is_a_named_pair() -> None:
    model = FeedbackTransformer(**SMALL).double()
    x = torch.randint(0, 7, (2, 5))
    _, memory = model(x, return_memory=True)
    keys, values = memory
    assert keys is memory.keys is memory[0]
    assert values is memory.values is memory[1]
    assert keys.shape == (2, 3, 8)
    assert memory.detach().keys.grad_fn is None
    assert keys.grad_fn is not None
    assert torch.equal(model(x, memory), model(x, (keys, values)))
    restored = pickle.loads(pickle.dumps(memory.detach()))
    assert torch.equal(restored.values, values)


def test_a_memory_keeps_its_lengths_in_all_that_maps_over_it() -> None:
    memory = Memory(torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([3, 1]))
    assert memory._fields == tuple(memory._asdict()) == ("keys", "values")
    for same in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory)), pytree.tree_map(torch.clone, memory)):
        assert isinstance(same, Memory)
        assert torch.equal(same.lengths, memory.lengths)
        assert all(map(torch.equal, same, memory))
    replaced = memory._replace(keys=memory.keys + 1)
    assert torch.equal(replaced.lengths, memory.lengths)
    assert torch.equal(replaced.keys, memory.keys + 1)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_memory_keeps_no_more_than_itself_alive(batch: int) -> None:
    model = FeedbackTransformer(**SMALL)
    with torch.no_grad():
        _, memory = model(torch.randint(0, 7, (batch, 100)), return_memory=True)
    for tensor in memory:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_the_attributes_of_0_0_11() -> None:
    model = FeedbackTransformer(**SMALL)
    assert (model.seq_len, model.mem_len, model.keep_last_hidden) == (2, 3, False)
    assert model.layer_weight.shape == (len(model.layers) + 1,)
    assert model.shared_kv_proj.weight.shape[1] == model.token_emb.weight.shape[1]
    assert model.pos_emb(4)[0].bias.shape[1] == 4
    model.mem_len, model.seq_len = 9, 1
    model.keep_last_hidden = True
    changed = FeedbackTransformer(**{**SMALL, "mem_len": 9, "seq_len": 1, "keep_last_hidden": True})
    changed.load_state_dict(model.state_dict())
    x = torch.randint(0, 7, (2, 12))
    logits, memory = model(x, return_memory=True)
    assert torch.equal(logits, changed(x))
    assert memory.keys.shape[1] == 9
    assert model.config == changed.config
    with pytest.raises(InputError, match="mem_len is 0"):
        model.mem_len = 0


def test_parts_can_be_set_under_their_old_names() -> None:
    model = FeedbackTransformer(**SMALL)
    x, names = torch.randint(0, 7, (2, 12)), set(model.state_dict())
    before = model(x)
    model.shared_kv_proj = torch.nn.Linear(8, 16, bias=False)
    assert model.decoder.stack.to_kv is model.shared_kv_proj
    assert set(model.state_dict()) == names
    assert not torch.equal(model(x), before)


@pytest.mark.parametrize("implementation", ["stepwise", "fused"])
def test_a_memory_of_another_type_is_taken_as_the_models(implementation: Any) -> None:
    model = FeedbackTransformer(**SMALL, implementation=implementation)
    x = torch.randint(0, 7, (2, 12))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            _, memory = model(x, return_memory=True)
            _, same = model(x, Memory(memory.keys.float(), memory.values.float()), return_memory=True)
        _, other = model(x, memory, return_memory=True)
    assert memory.keys.dtype == same.keys.dtype == torch.bfloat16
    assert other.keys.dtype == torch.float32


def test_what_a_reader_has_read_keeps_no_more_than_itself_alive() -> None:
    reader = Reader(FeedbackTransformer(**{**SMALL, "mem_len": 30}))
    reader.read(torch.randint(0, 7, (2, 6)))
    for tensor in reader.memory:  # keys and values may lie in one storage
        assert tensor.untyped_storage().nbytes() <= 2 * tensor.numel() * tensor.element_size()


class Recurrent(abc.ABC):
    """A user's base class."""

    @property
    @abc.abstractmethod
    def seq_len(self) -> int: ...

    @property
    @abc.abstractmethod
    def mem_len(self) -> int: ...


class Mine(FeedbackTransformer, Recurrent):
    """A user's model beside an abstract base."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def test_a_subclass_beside_an_abstract_base_keeps_the_fast_path() -> None:
    model = Mine(**SMALL)
    x = torch.randint(0, 7, (2, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = model(x)
    plain = FeedbackTransformer(**SMALL)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(logits, plain(x))
    generated = [torch.stack(list(generate(m, x, max_new_tokens=5, temperature=0))) for m in (model, plain)]
    assert torch.equal(*generated)


def test_a_whole_model_can_be_saved_and_copied(tmp_path: Path) -> None:
    model = FeedbackTransformer(**SMALL, position="relative").eval()
    x = torch.randint(0, 7, (2, 12))
    expected = model(x)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)


def test_decoder_takes_embeddings_and_is_what_the_model_runs() -> None:
    model = FeedbackTransformer(**SMALL)
    x = torch.randint(0, 7, (2, 5))
    states, memory = model.decoder(model.token_emb(x), return_memory=True)
    assert states.shape == (2, 5, 8)
    logits, same = model(x, return_memory=True)
    assert torch.equal(model.to_logits(states), logits)
    assert torch.equal(memory.keys, same.keys)
    assert (
        "to_logits.weight" not in FeedbackDecoder(**{k: v for k, v in SMALL.items() if k != "num_tokens"}).state_dict()
    )


def test_implementation_can_be_set_after_construction() -> None:
    model = FeedbackTransformer(**SMALL)
    assert model.implementation == "auto"
    model.implementation = "stepwise"
    assert model.decoder.implementation == "stepwise"
    with pytest.raises(InputError, match="implementation is 'fast'; it must be one of"):
        model.implementation = "fast"  # type: ignore[assignment]


def test_state_dict_round_trip() -> None:
    model, other = FeedbackTransformer(**SMALL), FeedbackTransformer(**SMALL)
    other.load_state_dict(model.state_dict())
    x = torch.randint(0, 7, (2, 5))
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_runs_in_other_precisions(dtype: torch.dtype) -> None:
    model = FeedbackTransformer(**SMALL).to(dtype)
    out, memory = model(torch.randint(0, 7, (2, 5)), return_memory=True)
    assert out.dtype == memory.keys.dtype == dtype
    assert out.isfinite().all()


def test_autocast_keeps_the_memory_in_bf16() -> None:
    model = FeedbackTransformer(**SMALL)
    x = torch.randint(0, 7, (2, 5))
    with torch.autocast("cpu", torch.bfloat16):
        out, memory = model(x, return_memory=True)
    assert out.dtype == memory.keys.dtype == torch.bfloat16
    assert (out.float() - model(x)).norm() < 0.1 * model(x).norm()


X = torch.zeros(2, 5, dtype=torch.long)
KEYS = torch.zeros(2, 3, 8)


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (X + 7, {}, "x holds token 7; tokens must be in [0, num_tokens=7)"),
        (X - 1, {}, "x holds token -1"),
        (X[:, :0], {}, "x is torch.int64 (2, 0)"),
        (X[0], {}, "x is torch.int64 (5,)"),
        (X.float(), {}, "x is torch.float32 (2, 5); it must be whole numbers"),
        (X.tolist(), {}, "x is of type list; it must be a tensor of whole numbers (batch >= 1, time >= 1)"),
        (
            X,
            {"memory": (KEYS[:1], KEYS[:1])},
            "memory.keys is (1, 3, 8); it must be (batch=2, n, 8), where 8 is kv_heads*dim_head",
        ),
        (X, {"memory": (KEYS[..., :4], KEYS)}, "memory.keys is (2, 3, 4)"),
        (X, {"memory": (KEYS, KEYS[:, :2])}, "memory.keys is (2, 3, 8) but memory.values (2, 2, 8)"),
        (X, {"memory": 3}, "memory is a int; it must be a Memory or a pair"),
        (X, {"memory": Memory(KEYS, KEYS, X[0, :3])}, "memory.lengths is (3,) on cpu; it must be (2,) on cpu"),
        (X, {"memory": Memory(KEYS, KEYS, torch.ones(2))}, "memory.lengths is torch.float32; it must be a tensor of"),
        (X.to(torch.uint8), {}, "x is torch.uint8 (2, 5); it must be whole numbers"),
        (X, {"memory": (KEYS.to("meta"), KEYS)}, "memory.keys is on meta, the input on cpu"),
        (X, {"mask": torch.ones(2, 4, dtype=torch.bool)}, "mask is torch.bool (2, 4); it must be torch.bool (2, 5)"),
        (X, {"reset": torch.ones(2, 5)}, "reset is torch.float32 (2, 5)"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(x: Any, arguments: dict[str, Any], message: str) -> None:
    model = FeedbackTransformer(**SMALL)
    with pytest.raises(InputError, match=re.escape(message)):
        model(x, **arguments)


def test_a_decoder_refuses_what_is_no_embedding() -> None:
    decoder = FeedbackDecoder(**{k: v for k, v in SMALL.items() if k != "num_tokens"})
    with pytest.raises(InputError, match=re.escape("x is torch.float32 (2, 5, 9); it must be floating point")):
        decoder(torch.zeros(2, 5, 9))


def test_lengths_of_a_memory_are_at_most_its_slots() -> None:
    model, x = FeedbackTransformer(**SMALL), torch.randint(0, 7, (2, 5))
    keys = torch.randn(2, 2, 8)
    memory = Memory(keys[:, 1:], keys[:, 1:], torch.tensor([9, 1]))
    logits, left = model(x[:, :1], memory, return_memory=True)
    assert left.lengths is None or left.lengths.tolist() == [2, 2]
    torch.testing.assert_close(logits, model(x[:, :1], (keys[:, 1:], keys[:, 1:])))


def test_autocast_leaves_float64_as_it_is() -> None:
    x = torch.randint(0, 7, (2, 5))
    model = FeedbackTransformer(**SMALL).double()
    expected, _ = model(x, return_memory=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, memory = model(x, return_memory=True)
    assert memory.keys.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_memory_longer_than_mem_len_is_trimmed_to_its_newest() -> None:
    model = FeedbackTransformer(**SMALL)
    x, keys = torch.randint(0, 7, (2, 5)), torch.randn(2, 6, 8)
    assert torch.equal(model(x, (keys, keys)), model(x, (keys[:, 3:], keys[:, 3:])))
