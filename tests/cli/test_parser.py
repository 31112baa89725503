"""Help that people can read, and completion for shells."""

import re
import sys

import pytest

from feedback_transformer_pytorch import cli
from feedback_transformer_pytorch.training.options import preset_names


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_no_python_in_it(capsys: pytest.CaptureFixture[str], command: str) -> None:
    text = printed(capsys, command, "--help")
    assert text.startswith(f"usage: feedback-transformer {command} ")
    for word in ("Literal", "NoneType", "str |", "Optional", "type:", "SUPPRESS"):
        assert word not in text


def test_help_of_train_has_groups_defaults_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(capsys, "train", "--help").split())
    headings = ["run:", "data:", "model:", "optimisation:", "machine:", "evaluation:", "saving and reporting:"]
    places = [text.index(f" {heading} --") for heading in headings]
    assert places == sorted(places)
    assert "--dim DIM model width D (default: 256)" in text
    assert (
        "--recompute, --no-recompute use less RAM and more time: recompute values in the backward pass (default: off)"
        in text
    )
    for name in preset_names():
        assert re.search(rf"{name} \([a-z]", text)


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_help_names_the_types_of_rounded_weights(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert "weights of Linears to: int8 or bfloat16; null: float32" in " ".join(
        printed(capsys, command, "--help").split()
    )


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_can_complete(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    pytest.importorskip("shtab")
    assert cli.main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--max-updates" in script
    assert "tokenizer" in script


def test_completion_needs_a_known_shell_and_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["--print-completion"]) == 2
    assert "--print-completion is ''; it must be bash or" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--print-completion", "bash"]) == 2
    assert "feedback-transformer-pytorch[completion]" in capsys.readouterr().err
