"""Imports run one way: a file imports only from lines above it in this list, or from its own folder."""

import ast
from pathlib import Path

import feedback_transformer_pytorch

ORDER = [
    "errors",
    "files",
    "config",
    "memory",
    "segments",
    "position",
    "layers",
    "recurrence",
    "model",
    "baselines",
    "conversion",
    "generation",
    "data",
    "training",
    "cli",
]
PACKAGE = Path(feedback_transformer_pytorch.__file__).parent


def test_imports_run_one_way() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent == PACKAGE and path.stem == "__init__":
            continue
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        rank = ORDER.index(parts[0])
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom):
                assert not (isinstance(node, ast.Import) and any("feedback" in a.name for a in node.names)), path
                continue
            assert "feedback" not in (node.module or ""), f"{path}: imports of our own are relative"
            outside = node.level == len(parts)  # as many dots as lead to the package itself
            if outside:
                target = (node.module or "").split(".")[0]
                names = [target] if target else [alias.name for alias in node.names]
                for name in names:
                    assert name == parts[0] or ORDER.index(name) < rank, f"{path} imports {name}, which is not above it"


def test_every_file_has_its_place() -> None:
    found = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").exists())}
    assert found - {"__init__"} == set(ORDER)
