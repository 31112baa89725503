"""What README says, done by somebody who has nothing: a fresh checkout, an empty home, an environment of their own.

Nothing comes from the machine but its programs, and in one of two runs no C++ compiler. Commands that train get `SMALL`
options behind their own; `make soak` runs them as they stand, and `make demo`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pages import ROOT, SMALL
from sybil import Document
from sybil.parsers.myst import CodeBlockParser

COMPILER = re.compile(r"(.*-)?(c\+\+|g\+\+|gcc|cc|clang|clang\+\+|c89|c99)(-[\d.]+)?")


@dataclass(frozen=True)
class Stranger:
    """Somebody in a checkout, with these variables of the environment and no others."""

    checkout: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.checkout, env=self.environment, capture_output=True, text=True)
        assert not done.returncode, f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def without(self, programs: re.Pattern[str], folder: Path) -> "Stranger":
        """The same, but none of these programs is found."""
        for place in self.environment["PATH"].split(os.pathsep):
            for program in Path(place).glob("*"):
                link = folder / program.name
                if not programs.fullmatch(program.name) and not link.is_symlink():
                    link.symlink_to(program)
        return replace(self, environment=self.environment | {"PATH": str(folder)})


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """README's shell commands, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    regions = CodeBlockParser("shell", lambda _: None)(Document(text, "README.md"))
    lines = [line for region in regions for line in str(region.parsed).splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    assert [program for program, *_ in found] == ["pip"] + ["feedback-transformer"] * 6
    return found


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """With the tracked files, an empty home and a new environment. Packages are those of constraints.txt."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone, so which files belong to a checkout is not known")
    folder = tmp_path_factory.mktemp("stranger")
    checkout, home, environment = folder / "checkout", folder / "home", folder / "environment"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    home.mkdir()
    someone = Stranger(
        checkout,
        {
            "HOME": str(home),
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PIP_CONSTRAINT": str(checkout / "constraints.txt"),
            "LANG": "C.UTF-8",
        }
        | {name: value for name, value in os.environ.items() if name.startswith("PIP_") and name != "PIP_CONSTRAINT"},
    )
    someone.run(sys.executable, "-m", "venv", str(environment))
    return someone


@pytest.fixture(scope="module")
def installed(stranger: Stranger, commands: list[list[str]]) -> Stranger:
    """After the command that installs."""
    stranger.run("pip", "install", "torch")  # what `.[train]` would find too, but without a choice of CUDA
    stranger.run(*commands[0])
    return stranger


@pytest.mark.release
@pytest.mark.timeout(900)  # it installs everything
@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "no compiler"])
def test_every_command_of_readme_works(
    installed: Stranger, commands: list[list[str]], compiler: bool, tmp_path: Path
) -> None:
    someone = installed if compiler else installed.without(COMPILER, tmp_path)
    for name in ("RUN", "TASK", "DIR"):
        shutil.rmtree(someone.checkout / name, ignore_errors=True)
    printed = ""
    for command in commands[1:]:
        trains = command[1] == "train" and "--resume" not in command
        printed += someone.run(*command, *(SMALL if trains else []))
    assert ("no C++ compiler" in printed) is not compiler
    assert (someone.checkout / "DIR" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_commands_of_readme_work_as_they_stand(installed: Stranger, commands: list[list[str]]) -> None:
    for command in commands[1:]:
        installed.run(*command)
    assert "bits/byte" in installed.run("make", "demo")
