"""Imports run one way: in every folder, an entry (a file or a sub-folder) imports only from entries before it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import feedback_transformer_pytorch

PACKAGE = Path(feedback_transformer_pytorch.__file__).parent

# For each folder, its entries in order. docs/design.md, section 3, says what each of them is.
ORDER: dict[str, list[str]] = {
    ".": [
        "errors",
        "digest",
        "files",
        "autocast",
        "activation",
        "position",
        "config",
        "memory",
        "segments",
        "layers",
        "checks",
        "recurrence",
        "details",
        "decoder",
        "model",
        "functional",
        "baselines",
        "conversion",
        "generation",
        "tasks",
        "data",
        "training",
        "hf",
        "parser",
        "cli",
    ],
    "layers": ["initialisation", "sublayer", "span", "attention", "cross_attention", "feedforward"],
    "recurrence": [
        "request",
        "stack",
        "mask",
        "attention_record",
        "stepwise",
        "applicability",
        "adapters",
        "random_numbers",
        "substitution",
        "layout",
        "ops",
        "engine",
        "native",
        "backends",
        "fused",
        "incremental",
        "kernel_self_test",
        "library",
    ],
    "recurrence/layout": ["plan", "precision", "rounding", "workspace", "tape", "buffer"],
    "recurrence/ops": [
        "products",
        "linear",
        "norm",
        "parameters",
        "chunk",
        "key_value_gradient",
        "sublayer",
        "scores",
        "span",
        "attention_core",
        "attention",
        "cross_attention",
        "feedforward",
    ],
    "recurrence/engine": ["derived", "walk", "protocols", "forward", "backward", "torch_steps"],
    "recurrence/native": [
        "command",
        "compiler",
        "openmp",
        "cache",
        "library",
        "applicability",
        "structures",
        "packing",
        "kernel",
        "product",
        "steps",
    ],
    "data": [
        "documents",
        "tokenizer",
        "bpe",
        "load_tokenizer",
        "text",
        "store",
        "standard_library",
        "corpus",
        "blocks",
        "labelled",
        "sequences",
        "streams",
    ],
    "generation": [
        "sampling",
        "stopping",
        "prompts",
        "steps",
        "reader",
        "rows",
        "continuation",
        "state_file",
        "beam",
        "weights",
    ],
    "tasks": [
        "task",
        "automaton",
        "groups",
        "random_walk",
        "arithmetic",
        "copying",
        "counting",
        "mqar",
        "algorithmic",
        "registry",
    ],
    "training": [
        "schema",
        "options",
        "earlier",
        "processes",
        "interrupt",
        "objective",
        "models",
        "updates",
        "evaluation",
        "reporting",
        "saving",
        "datasets",
        "loop",
        "evaluate",
        "inspection",
        "until_stop",
        "commands",
    ],
    "hf": [
        "remote_code",
        "configuration",
        "reading",
        "token_walk",
        "cache",
        "from_run",
        "modeling",
        "auto",
        "tokenizer",
        "model_card",
        "export",
        "harness",
    ],
    "training/options": ["presets", "task", "train", "tokenizer", "trained"],
    "training/models": ["architectures", "window", "initialisation"],
    "training/updates": ["memories", "optimizer", "mastery", "trainer"],
    "training/evaluation": ["reading", "measured", "text_bits", "label_counts", "xz", "validation"],
    "training/reporting": ["meter", "estimate", "progress", "plots", "trackers"],
    "training/saving": ["checkpoint", "lock", "metrics", "run", "saver"],
    "training/datasets": ["dataset", "text", "labelled"],
    "training/inspection": ["passage", "findings", "pictures", "page", "command"],
}

Module = tuple[str, ...]  # names that lead from the package to a file or folder


def order_of(folder: Module) -> list[str]:
    return ORDER["/".join(folder) or "."]


def is_module(module: Module) -> bool:
    path = PACKAGE.joinpath(*module)
    return path.with_name(path.name + ".py").exists() or (path / "__init__.py").exists()


def imported(node: ast.ImportFrom, importer: Module) -> Iterator[Module]:
    """The modules that a relative import names: `from . import a` names a, `from .a import b` names a, or a/b."""
    base = importer[: len(importer) - node.level] + tuple((node.module or "").split(".") if node.module else ())
    for alias in node.names:
        module = (*base, alias.name)
        yield module if is_module(module) else base


def violation(importer: Module, target: Module) -> str | None:
    """What is wrong with an import; None if nothing is."""
    common = 0
    while importer[common : common + 1] == target[common : common + 1]:
        common += 1
    folder, own, other = importer[:common], importer[common], target[common : common + 1]
    if own == "__init__":
        return None
    if not other:
        return f"{'/'.join(importer)} imports {'/'.join(folder) or 'the package'}, which it is a part of"
    order = order_of(folder)
    if order.index(other[0]) >= order.index(own):
        return f"{'/'.join(importer)} imports {'/'.join(target)}, which is not before it"
    return None


def sources() -> list[Module]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [path.relative_to(PACKAGE).with_suffix("").parts for path in paths]


@pytest.mark.parametrize("importer", sources(), ids="/".join)
def test_imports_run_one_way(importer: Module) -> None:
    tree = ast.parse(PACKAGE.joinpath(*importer).with_suffix(".py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any("feedback" in alias.name for alias in node.names), "imports of our own are relative"
        elif isinstance(node, ast.ImportFrom):
            assert "feedback" not in (node.module or ""), "imports of our own are relative"
            for target in imported(node, importer) if node.level else ():
                assert violation(importer, target) is None, violation(importer, target)


@pytest.mark.parametrize("importer", [module for module in sources() if module != ("cli",)], ids="/".join)
def test_imports_stand_at_the_top(importer: Module) -> None:
    """Only the command line imports our own files in functions: they need packages of an extra."""
    tree = ast.parse(PACKAGE.joinpath(*importer).with_suffix(".py").read_text())
    own = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node in tree.body for node in own)


@pytest.mark.parametrize("importer", [module for module in sources() if module[0] == "tasks"], ids="/".join)
def test_tasks_need_numpy_alone(importer: Module) -> None:
    tree = ast.parse(PACKAGE.joinpath(*importer).with_suffix(".py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert {module[0] for module in imported(node, importer)} <= {"tasks", "errors"}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "numpy"}


def test_every_file_has_its_place_in_one_order() -> None:
    found: dict[str, list[str]] = {}
    for *folder, name in sources():
        if name != "__init__":
            found.setdefault("/".join(folder) or ".", []).append(name)
        elif folder:
            found.setdefault("/".join(folder[:-1]) or ".", []).append(folder[-1])
    assert sorted_entries(found) == sorted_entries(ORDER)


def sorted_entries(folders: dict[str, list[str]]) -> dict[str, list[str]]:
    return {folder: sorted(entries) for folder, entries in folders.items()}


@pytest.mark.parametrize(
    ("importer", "target", "is_wrong"),
    [
        ("training/loop", "data", False),
        ("data/streams", "training/options", True),
        ("training/loop", "training/saving/run", False),
        ("training/options", "training/saving/run", True),
        ("training/reporting/meter", "training/updates/trainer", False),
        ("training/updates/trainer", "training/reporting/meter", True),
        ("training/saving/run", "training/saving/checkpoint", False),
        ("training/saving/checkpoint", "training/saving/run", True),
        ("recurrence/native/kernel", "recurrence/engine/walk", False),
        ("recurrence/engine/walk", "recurrence/native/kernel", True),
        ("recurrence/layout/buffer", "recurrence/layout/tape", False),
        ("recurrence/layout/tape", "recurrence/layout/buffer", True),
        ("data/streams", "data", True),
        ("data/__init__", "data/streams", False),
    ],
)
def test_a_wrong_way_is_found(importer: str, target: str, is_wrong: bool) -> None:
    assert (violation(tuple(importer.split("/")), tuple(target.split("/"))) is not None) == is_wrong
