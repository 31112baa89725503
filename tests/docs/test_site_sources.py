"""What the documentation takes from elsewhere is there, and whole."""

import importlib.util
import inspect
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from pages import ROOT, SITE

import feedback_transformer_pytorch
from feedback_transformer_pytorch import hf
from feedback_transformer_pytorch.cli import COMMANDS
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.schema import flag


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_drawings_are_what_their_script_draws() -> None:
    folder = SITE / "figures"
    for name, content in load(folder / "draw.py").drawings().items():
        assert (folder / name).read_text(encoding="utf-8") == content, f"run `python docs/site/figures/draw.py`: {name}"


@pytest.mark.parametrize("module", [feedback_transformer_pytorch, hf], ids=["package", "hf"])
def test_the_reference_has_every_public_name(module: ModuleType) -> None:
    listed = set(re.findall(r"auto(?:class|function|exception):: (\w+)", (SITE / "api.md").read_text(encoding="utf-8")))
    public = {name for name, value in vars(module).items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert public <= listed, "list these in docs/site/api.md"


def test_every_page_is_in_the_table_of_contents() -> None:
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (SITE / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    pages = {page.stem for page in SITE.glob("*.md")} - {"index"}
    assert pages == set(re.findall(r"^([\w.-]+)$", "".join(trees), re.MULTILINE))


def test_the_quick_start_has_every_extra() -> None:
    (table,) = re.findall(
        r"\| extra \| adds \|\n\| --- \| --- \|\n((?:\|.*\n)+)", (SITE / "quick-start.md").read_text("utf-8")
    )
    named = [name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    project = tomllib.loads((SITE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(named) == sorted(project["optional-dependencies"])


class TestCommandOptions:
    @pytest.fixture
    def written(self) -> str:
        pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
        return load(SITE / "extensions" / "command_options.py").markdown()

    def test_every_command_and_option_is_there(self, written: str) -> None:
        assert all(f"\n## {name}\n" in "\n" + written for name in COMMANDS)
        assert all(f"| `{flag(name)}` |" in written for name in TrainOptions.infos() if name != "files")


class TestExperimentTable:
    @pytest.fixture
    def extension(self) -> ModuleType:
        pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
        return load(SITE / "extensions" / "experiment_table.py")

    def test_a_section_that_was_run(self, extension: ModuleType) -> None:
        page = "# A\n\n## One\n\n![One](plots/one.svg)\n\n### Group\n\n| a |\n\n## Two\n\nno\n"
        section = extension.section(page, "One")
        assert "no" not in section
        assert "**Group**" in section
        assert "](../../experiments/plots/one.svg)" in section

    def test_a_section_that_was_not_run(self, extension: ModuleType) -> None:
        assert "has not been run yet" in extension.section("# A\n", "One")

    def test_the_pages_ask_for_tables_that_exist(self, extension: ModuleType) -> None:
        titles = {
            re.search(r"^title: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)[1]
            for path in (ROOT / "experiments").glob("*/table.yaml")
        }
        asked = [
            title
            for page in SITE.glob("*.md")
            for title in re.findall(r"\{experiment-table\} (.*)", page.read_text(encoding="utf-8"))
        ]
        assert asked
        assert set(asked) <= titles
