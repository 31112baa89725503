"""The scripts of examples/, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name: str, *arguments: str | Path, folder: Path) -> str:
    """What a script prints, with `folder` as the working directory."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the RUN that the second example leaves behind."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "text.txt").write_text("".join(f"{n} sheep, {n + 1} sheep. " for n in range(2000)))
    printed = run_example("train_on_files.py", "text.txt", "--updates", "5", folder=folder)
    assert "bits/byte" in printed
    assert "\nThe " in printed
    return folder


def test_training_on_files_leaves_a_run(trained: Path) -> None:
    assert (trained / "run" / "config.yaml").is_file()


def test_the_drop_in_model_learns_and_writes(tmp_path: Path) -> None:
    printed = run_example("drop_in.py", "--updates", "5", folder=tmp_path)
    assert "update 5: " in printed
    assert len(printed) > 100


def test_transformers_generate(trained: Path) -> None:
    printed = run_example("transformers_generate.py", folder=trained)
    texts = printed.split("\n---\n")
    assert [text[:4] for text in texts] == ["The ", "If t", "The ", "The "]
    assert "(93 tokens read)" in printed


def test_lora(trained: Path) -> None:
    printed = run_example("lora.py", "--updates", "2", folder=trained)
    assert "update 2: loss" in printed
    assert (trained / "adapted" / "adapters" / "adapter_model.safetensors").is_file()
    assert (trained / "adapted" / "merged" / "model.safetensors").is_file()


def test_memory_control(tmp_path: Path) -> None:
    assert run_example("memory_control.py", folder=tmp_path) == "all of it holds\n"


def test_the_readme_links_all() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    assert all(f"examples/{path.name}" in readme for path in EXAMPLES.glob("*.py"))
