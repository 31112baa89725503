"""The walk as an operator: compiled, exported and functional calls compute what the model computes in eager mode."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feedback_transformer_pytorch import FeedbackConfig, FeedbackDecoder, FeedbackTransformer, InputError, walk

BASE: dict[str, Any] = {
    "num_tokens": 11, "dim": 6, "depth": 2, "mem_len": 4, "seq_len": 2, "heads": 2, "dim_head": 3
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "per layer": {"kv": "per_layer", "memory_norm": "layer", "position": "learned"},
    "context": {"context_dim": 5},
    "states": {"carry": "state", "memory_norm": "plain", "memory_start": "zeros"},
    "states and spans": {"carry": "state", "adaptive_span": True, "span_ramp": 1, "span_trim": 1, "span_init": 0.3},
    "spans": {"adaptive_span": True, "span_ramp": 1, "span_trim": 1, "span_init": 0.3, "norm": "post"},
}
NAME = "feedback_transformer_pytorch.walk.default"


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def model_of(**fields: Any) -> FeedbackTransformer:
    model = FeedbackTransformer(**BASE | fields).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def tokens(batch: int = 2, time: int = 19) -> Tensor:
    return torch.randint(0, 11, (batch, time))


def context_of(model: FeedbackTransformer) -> dict[str, Tensor]:
    width = model.config.context_dim
    return {} if width is None else {"context": torch.randn(2, 3, width, dtype=torch.float64)}


def evaluate(
    model: nn.Module, call: Callable[..., Any], *args: Any, memory: Any = None, **kw: Any
) -> dict[str, Tensor]:
    """Results of a call, and the gradients of parameters, memory and other inputs; where there is none, zeros."""
    leaves = dict(model.named_parameters())
    if memory is not None:
        memory = type(memory)(*(tensor.detach().clone().requires_grad_() for tensor in memory.tensors))
        leaves |= {f"memory {number}": tensor for number, tensor in enumerate(memory.tensors)}
    kw = {name: tensor.detach().clone().requires_grad_() for name, tensor in kw.items()}
    out, left = call(*args, memory, True, **kw)
    results = {"out": out} | {f"left {number}": tensor for number, tensor in enumerate(left.tensors)}
    leaves |= kw
    grads = torch.autograd.grad(
        sum((tensor.sin().sum() for tensor in results.values()), torch.zeros(())),
        list(leaves.values()),
        allow_unused=True,
        materialize_grads=True,
    )
    return results | {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def assert_agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "backend"), [*((name, "aot_eager") for name in CONFIGS), ("default", "eager")])
def test_a_compiled_model_gives_what_it_gives_in_eager_mode(name: str, backend: str) -> None:
    model, x = model_of(**CONFIGS[name]), tokens()
    arguments = context_of(model)
    memory = model(x[:, :3], return_memory=True, **arguments)[1].detach()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    expected = evaluate(model, model, x, memory=memory, **arguments)
    assert_agree(evaluate(model, compiled, x, memory=memory, **arguments), expected)


def test_a_compiled_model_starts_without_a_memory() -> None:
    model, x = model_of(), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_agree(evaluate(model, compiled, x), evaluate(model, model, x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_compiled_model_notices_another_configuration() -> None:
    model, x = model_of(), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(x)
    model.seq_len, model.keep_last_hidden = 3, True
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)


def test_dropout_draws_its_masks_from_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(attn_dropout=0.3, ff_dropout=0.2), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "manual_seed_all", None)  # generators of other devices stay as they are
        found = evaluate(model, compiled, x)
    torch.manual_seed(5)
    torch.manual_seed(int(torch.randint(2**62, ())))
    assert_agree(found, evaluate(model, model, x))
    model.eval()
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["default", "per layer"])
def test_autocast(name: str) -> None:
    model, x = model_of(**CONFIGS[name]).float(), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = evaluate(model, model, x), evaluate(model, compiled, x)
    assert_agree(found, expected, tolerance=2e-2)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's, where a graph breaks
def test_rows_that_differ_break_the_graph_and_nothing_else() -> None:
    model, x = model_of(), tokens()
    flags = {"mask": torch.rand(x.shape) < 0.7, "reset": torch.rand(x.shape) < 0.2}
    compiled = torch.compile(model, backend="aot_eager")

    def call(of: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, memory, return_memory: of(x, memory, return_memory, **flags)

    assert_agree(evaluate(model, call(compiled), x), evaluate(model, call(model), x))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="depends on what mask and reset say"):
        torch.compile(model, fullgraph=True, backend="eager")(x, **flags)


def test_what_the_operator_does_not_compute_is_traced_as_the_definition() -> None:
    model, x = model_of(), tokens(time=3)
    model.layers[0].attention.to_q = nn.Sequential(model.layers[0].attention.to_q, nn.Identity())
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=keep)
    with pytest.warns(UserWarning, match="falls back"):
        found = compiled(x)
    torch.testing.assert_close(found, model(x), rtol=1e-10, atol=1e-10)
    assert NAME not in str(graphs[0].graph)


def operators(program: Any) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if "feedback" in str(node.target)]


@pytest.mark.parametrize(
    ("name", "strict"), [("default", True), *((name, False) for name in CONFIGS if name != "spans")]
)
def test_an_exported_model_has_one_node_for_the_walk(name: str, strict: bool) -> None:
    model, x = model_of(**CONFIGS[name]), tokens()
    arguments = context_of(model)
    program = torch.export.export(model, (x,), arguments, strict=strict)
    assert operators(program) == [NAME]
    torch.testing.assert_close(program.module()(x, **arguments), model(x, **arguments), rtol=1e-10, atol=1e-10)


def test_an_exported_program_takes_other_shapes_has_gradients_and_can_be_saved() -> None:
    model, x = model_of(), tokens()
    shapes = {"x": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("time", min=5, max=1000)}}
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    other = tokens(batch=3, time=31)
    out, expected = loaded(other), model(other)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    grads = [torch.autograd.grad(y.sin().sum(), list(m.parameters())) for y, m in ((out, loaded), (expected, model))]
    torch.testing.assert_close(*(dict(zip(dict(model.named_parameters()), grad, strict=True)) for grad in grads))


def decoder_of(name: str) -> FeedbackDecoder:
    decoder = model_of(**CONFIGS[name]).decoder
    decoder.norm = nn.Identity()
    return decoder


@pytest.mark.parametrize(
    ("name", "compiles"), [*((name, False) for name in CONFIGS), ("default", True), ("states", True)]
)
def test_walk_is_a_decoder_without_its_last_norm(name: str, compiles: bool) -> None:
    decoder = decoder_of(name)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    arguments: dict[str, Any] = {} if name != "context" else {"context": torch.randn(2, 3, 5, dtype=torch.float64)}
    memory = decoder(x[:, :5], return_memory=True, **arguments)[1].detach()

    def function(x: Tensor, memory: Any, return_memory: bool, **arguments: Any) -> Any:
        parameters = dict(decoder.stack.named_parameters())
        return walk(x, parameters, decoder.config, initial_memory=memory, return_memory=return_memory, **arguments)

    call = torch.compile(function, fullgraph=True, backend="aot_eager") if compiles else function
    expected = evaluate(decoder, decoder, x, memory=memory, **arguments)
    assert_agree(evaluate(decoder, call, x, memory=memory, **arguments), expected)


def test_there_are_no_second_derivatives() -> None:
    decoder = decoder_of("default")
    x = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    out = walk(x, dict(decoder.stack.named_parameters()), decoder.config)
    (grad,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.sum().backward()


def test_walk_exports_as_one_node() -> None:
    decoder = decoder_of("default")

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ParameterDict({n.replace(".", "_"): p for n, p in decoder.stack.named_parameters()})
            self.names = [name for name, _ in decoder.stack.named_parameters()]

        def forward(self, x: Tensor) -> Tensor:
            parameters = {name: self.parts[name.replace(".", "_")] for name in self.names}
            return walk(x, parameters, decoder.config)

    x = torch.randn(2, 9, 6, dtype=torch.float64)
    program = torch.export.export(Embedding(), (x,))
    assert operators(program) == [NAME]
    torch.testing.assert_close(program.module()(x), decoder(x), rtol=1e-10, atol=1e-10)


def test_walk_refuses_parameters_of_another_configuration() -> None:
    decoder = decoder_of("default")
    x, parameters = torch.randn(2, 9, 6, dtype=torch.float64), dict(decoder.stack.named_parameters())
    with pytest.raises(
        InputError, match=re.escape("parameters has no 'layer_weight'; this configuration has one (3,)")
    ):
        walk(x, {name: p for name, p in parameters.items() if name != "layer_weight"}, decoder.config)
    with pytest.raises(InputError, match="'another', which this configuration has not"):
        walk(x, parameters | {"another": x}, decoder.config)
    with pytest.raises(InputError, match=re.escape("parameters['layer_weight'] is (2, 9, 6); it must be (3,)")):
        walk(x, parameters | {"layer_weight": x}, decoder.config)
    with pytest.raises(InputError, match="x is"):
        walk(x[0], parameters, decoder.config)


@pytest.mark.parametrize("name", ["default", "states"])
def test_the_operator_keeps_the_rules_of_operators(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of(name)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    given: list[Any] = []
    monkeypatch.setattr(
        "feedback_transformer_pytorch.recurrence.library._walk",
        lambda *arguments: given.append(arguments) or torch.ops.feedback_transformer_pytorch.walk(*arguments),
    )
    walk(x, dict(decoder.stack.named_parameters()), FeedbackConfig(**BASE | CONFIGS[name]))
    leaves = [t.detach().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t for t in given[0]]
    torch.library.opcheck(torch.ops.feedback_transformer_pytorch.walk.default, tuple(leaves))
