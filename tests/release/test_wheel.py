"""The distributions: what they hold, and that they work without the checkout (`make release-check`)."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from feedback_transformer_pytorch.recurrence.native.library import library

pytestmark = pytest.mark.release

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "feedback_transformer_pytorch"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made of a source distribution."""
    for module in ("build", "hatchling"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; it comes with the extra `dev`")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel, which sees the packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    scripts = folder / "bin"
    run(sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-deps", "--no-index", wheel)
    site = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def run(*command: object, cwd: Path | None = None) -> str:
    """What a command prints. It does not see the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert not done.returncode, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert found == {str(path.relative_to(PACKAGE.parent)) for path in files}
    assert {"presets/demo.yaml", "recurrence/native/source/interface.cpp", "py.typed"} <= {
        name.partition("/")[2] for name in found
    }


def test_the_program_runs(installed: Path) -> None:
    assert "train" in run(installed / "feedback-transformer", "--help")


def test_it_trains_with_a_preset(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{n} sheep went over the bridge.\n" for n in range(2000)))
    small = ["--max-updates=2", "--eval-every=2", "--eval-len=200", "--sample-len=5"]
    run(installed / "feedback-transformer", "train", "text.txt", "--preset=tiny", *small, "--out=RUN", cwd=tmp_path)
    assert (tmp_path / "RUN" / "model.safetensors").exists()


def test_the_kernel_is_built_from_the_installed_sources(installed: Path, tmp_path: Path) -> None:
    if library() is None:
        pytest.skip("the kernel is off, or there is no C++ compiler for it")
    code = (
        "import feedback_transformer_pytorch as package\n"
        "from feedback_transformer_pytorch.recurrence.native.library import library\n"
        "print(package.__file__, library() is not None)"
    )
    where, is_there = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed.parent)
    assert is_there == "True"
