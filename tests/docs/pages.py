"""The pages whose code blocks run, and how a block runs."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sybil import Example, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

from feedback_transformer_pytorch import cli

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(SITE.glob("*.md"))]

# Behind the options that a page shows, so that a run takes a moment and not minutes.
SMALL = [
    *("--dim=16", "--depth=2", "--heads=2", "--dim-head=8", "--mem-len=16", "--batch-size=2", "--block-len=16"),
    *("--max-updates=2", "--warmup-updates=1", "--eval-every=2", "--log-every=1", "--eval-len=200", "--sample-len=5"),
]


def blocks(page: Path) -> Iterator[Example]:
    """The Python and shell blocks of a page, in order, ready to run."""
    parsers = [PythonCodeBlockParser(), CodeBlockParser("shell", run_shell), SkipParser()]
    return iter(Sybil(parsers=parsers).parse(page).examples())


def run_shell(block: Example) -> None:
    """Runs commands: the package's in this process, which spares starting Python; `make` says what it would do."""
    for command in str(block.parsed).replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command, comments=True) or [""]
        if program == "feedback-transformer":
            run_program(arguments, command)
        elif program == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        elif program:
            raise AssertionError(f"no test runs {command!r}; skip it with a reason, or add it to {Path(__file__).name}")


def run_program(arguments: list[str], command: str) -> None:
    if arguments[0] == "train" and "--resume" not in arguments:
        arguments = [*arguments, *SMALL]
    try:
        code = cli.main(arguments)
    except SystemExit as end:  # --help and --print-config
        code = end.code
    assert not code, f"{command!r} ended with {code}"


def languages(page: Path) -> set[str]:
    """The languages of all fenced blocks of a page."""
    return set(re.findall(r"^ *(?:```+|:::+)([^\s:`]+)", page.read_text(encoding="utf-8"), re.MULTILINE))


def skips(page: Path) -> list[str]:
    """The skip comments of a page, without `skip: `."""
    return re.findall(r"<!-*\s*skip: (.*?)\s*-*>", page.read_text(encoding="utf-8"))
