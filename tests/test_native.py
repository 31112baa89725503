"""The compiled kernel: every width of its vectors and tiles, any number of threads.

What it computes for all other shapes and options is tested in `test_fused.py`, beside the walk by torch's operations.
"""

import ctypes
import dataclasses
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cases import NUM_TOKENS, Case, definition
from feedback_transformer_pytorch import FeedbackConfig, FeedbackTransformer
from feedback_transformer_pytorch.recurrence.backends import KernelBackend
from feedback_transformer_pytorch.recurrence.native import applicability, kernel, structures
from feedback_transformer_pytorch.recurrence.native.compiler import SOURCE
from feedback_transformer_pytorch.recurrence.native.library import library
from test_fused import compare, relative_errors, run

CONFIG = FeedbackConfig(
    num_tokens=NUM_TOKENS, dim=40, depth=2, mem_len=19, seq_len=1, heads=4, dim_head=8, kv_heads=2, norm_memory=True
)
needs_kernel = pytest.mark.usefixtures("built")


@pytest.fixture(autouse=True)
def short_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)
    monkeypatch.setattr(kernel, "WORK_OF_A_THREAD", 0)


@pytest.fixture
def built() -> None:
    if library() is None:
        pytest.skip("no C++ compiler")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@needs_kernel
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dim_head", [1, 2, 4, 8, 16, 24, 32, 64, 128])
@pytest.mark.parametrize("seq_len", [1, 3])
def test_every_width_of_a_head(dim_head: int, seq_len: int) -> None:
    """One, two, four and eight vectors to a head, and what is no whole number of them."""
    config = dataclasses.replace(CONFIG, dim_head=dim_head, seq_len=seq_len, attn_dropout=0.1, ff_dropout=0.1)
    case = Case(config, batch=2, time=50, memory_slots=0, seed=0)
    compare(case.model(), case.tokens(), None)


@needs_kernel
@pytest.mark.parametrize("dim_head", [4, 16, 24, 32, 64, 128])
def test_float32_is_as_near_to_float64_as_the_definition_is(dim_head: int) -> None:
    config = dataclasses.replace(CONFIG, dim_head=dim_head)
    expected, found = (relative_errors(config, way, batch=14, time=60) for way in ("stepwise", "fused"))
    for name, error in found.items():
        assert error < 3 * expected[name] + 1e-6, name


@needs_kernel
def test_saturated_attention_with_dropout_has_no_gradient_of_rounding() -> None:
    """Where one probability is 1, the gradients of the scores are exactly 0; huge keys would multiply any other."""
    config = dataclasses.replace(CONFIG, attn_dropout=0.3, memory_norm="none", position="relative")
    errors = {}
    for way in ("stepwise", "fused"):
        torch.manual_seed(0)
        model = FeedbackTransformer.from_config(config, implementation=way)
        memory = 1e6 * torch.randn(2, 2, 19, config.kv_dim)
        grads = []
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(1)
            model.to(dtype).zero_grad()
            model(torch.arange(20).view(2, 10) % NUM_TOKENS, tuple(memory.to(dtype))).square().sum().backward()
            grads.append(model.token_emb.weight.grad.double())
        errors[way] = float((grads[0] - grads[1]).norm() / grads[1].norm())
    assert errors["fused"] < 10 * errors["stepwise"] + 1e-5


@needs_kernel
def test_another_default_device_does_not_matter() -> None:
    """What the kernel is given besides the model's own tensors must lie in the memory of the CPU too."""
    config = dataclasses.replace(CONFIG, position="relative")
    case = Case(config, batch=2, time=20, memory_slots=0, seed=0)
    model, x = case.model(implementation="fused"), case.tokens()
    expected = model(x)
    with torch.device("meta"):
        found = model(x)
    assert torch.equal(found, expected)
    found.sum().backward()


@needs_kernel
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("streams", [1, 7, 9])
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 11, 12, 13, 24, 25, 37])
def test_every_height_of_a_tile(rows: int, streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library(), "bytes_to_stream", lambda: 0)
    monkeypatch.setattr(kernel, "STREAMS", streams)
    case = Case(dataclasses.replace(CONFIG, dim=136), batch=rows, time=6, memory_slots=0, seed=0)
    compare(case.model(), case.tokens(), None)


@needs_kernel
@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_nothing() -> None:
    """Forward, nothing is summed across threads; backward, only what becomes the gradients of parameters.

    The logits are not the kernel's: the matrix library may divide their sums among threads. The states are.
    """
    case, found = Case(CONFIG, batch=5, time=40, memory_slots=0, seed=0), []
    model = case.model(implementation="fused")
    expected = definition(model, lambda: run(model, case.tokens(), None))
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(run(model, case.tokens(), None))
        expected.assert_agrees(found[-1])
        found[-1]["states"] = model.decoder(model.token_emb(case.tokens()))
    for other in found[1:]:
        for name in ("states", "keys", "values"):
            assert torch.equal(other[name], found[0][name]), name


@needs_kernel
def test_too_many_rows_are_left_to_the_matrix_library(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, taken = library(), []
    assert compiled is not None
    for steps in ("forward_steps", "backward_steps"):
        monkeypatch.setattr(KernelBackend, steps, lambda *args: taken.append(args))
    case = Case(dataclasses.replace(CONFIG, dim=8), batch=compiled.most_rows() + 1, time=2, memory_slots=0, seed=0)
    compare(case.model(), case.tokens(), None)
    assert not taken


@needs_kernel
@pytest.mark.parametrize(
    ("name", "kernel_name"),
    [("Model", "model"), ("LayerWeights", "layer_weights"), ("Forward", "forward"), ("Backward", "backward")],
)
def test_structures_have_the_same_size_on_both_sides(name: str, kernel_name: str) -> None:
    size = getattr(library(), f"size_of_{kernel_name}")()
    assert size == ctypes.sizeof(getattr(structures, name))


@pytest.mark.parametrize(
    "name", ["PackedLinear", "NormWeights", "LayerWeights", "Model", "SegmentData", "Forward", "Backward"]
)
def test_structures_have_the_same_fields_on_both_sides(name: str) -> None:
    """In the same order: fields of one size in another order would go unseen."""
    source = SOURCE.with_name("structures.h").read_text()
    body = re.search(rf"struct {name} {{\n(.*?)\n(?:\n    Index inner.*?)?}};", source, re.DOTALL)
    assert body
    declarations = re.sub(r"//.*", "", body[1]).split(";")[:-1]
    fields = [field.split()[-1].lstrip("*") for declaration in declarations for field in _declared(declaration)]
    assert fields == [name for name, _ in getattr(structures, name)._fields_]


def _declared(declaration: str) -> list[str]:
    """The variables of a C++ declaration, the type before the first."""
    return re.sub(r"<[^>]*>", "", declaration).split(",")


@needs_kernel
@pytest.mark.parametrize("dim_head", [1, 4, 8, 16, 24, 32, 64, 128])
@pytest.mark.parametrize(("attn_dropout", "seq_len"), [(0.0, 1), (0.2, 1), (0.0, 3)])
def test_recomputed_values_are_those_of_rounded_weights_and_memory(
    attn_dropout: float, seq_len: int, dim_head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast: what `recompute` computes, by torch's operations, is what the kernel computed.

    Where inputs are rounded too, a last digit in float32 may turn into one in bf16; `test_bf16.py` has that case.
    """
    monkeypatch.setattr(library(), "multiplies_bf16", lambda: 0)
    monkeypatch.setattr("feedback_transformer_pytorch.recurrence.layout.precision.has_bf16", lambda: False)
    config = dataclasses.replace(CONFIG, attn_dropout=attn_dropout, seq_len=seq_len, dim_head=dim_head)
    model = FeedbackTransformer.from_config(config)
    x = torch.randint(0, NUM_TOKENS, (3, 40))

    def results(*, autocast: bool, recompute: bool) -> dict[str, Tensor]:
        model.decoder.recompute = recompute
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = run(model, x, None)
        return {name: tensor.double() for name, tensor in found.items()}

    unrounded, kept, recomputed = (
        results(autocast=autocast, recompute=recompute)
        for autocast, recompute in ((False, False), (True, False), (True, True))
    )
    for name, tensor in kept.items():
        assert (recomputed[name] - tensor).norm() <= 0.01 * (tensor - unrounded[name]).norm(), name


@needs_kernel
def test_under_autocast_a_carried_memory_is_the_one_that_was_walked() -> None:
    """It is in bf16 within a call too, so that cutting a text into calls changes nothing in the states."""
    model = FeedbackTransformer.from_config(CONFIG)
    x = model.token_emb(torch.randint(0, NUM_TOKENS, (3, 40)))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        whole, left = model.decoder(x, return_memory=True)
        first, memory = model.decoder(x[:, :20], return_memory=True)
        second, found = model.decoder(x[:, 20:], memory, return_memory=True)
    assert left.keys.dtype == torch.bfloat16
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(found.keys, left.keys)
    assert torch.equal(found.values, left.values)
