"""`feedback-transformer generate` as a user meets it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import train, write_text

from feedback_transformer_pytorch import cli
from feedback_transformer_pytorch.training.until_stop import UntilStop


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder / "text.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        # So many updates that it writes ASCII: a cut inside of a character would be seen.
        train(folder / "text.txt", "--out", folder / "run", "--max-updates=80", "--eval-every=80")
    return folder / "run"


@pytest.fixture
def written(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints, without its last newline."""

    def write(*arguments: str | Path) -> str:
        capsys.readouterr()
        code = cli.main(["generate", str(run), *map(str, arguments)])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out.removesuffix("\n")

    return write


@pytest.fixture
def refused(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which a command is refused."""

    def refuse(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert cli.main(["generate", str(run), *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        return captured.err

    return refuse


GREEDY = ("--prompt=7 sheep", "--temperature=0")


def test_a_text_goes_on_from_a_saved_state(written: Callable[..., str], tmp_path: Path) -> None:
    sampled = ["--temperature=0.9", "--top-k=8", "--min-p=0.05", "--repetition-penalty=1.1"]
    whole = written("--prompt=7 sheep", *sampled, "--seed=3", "--max-new-tokens=50")
    first = written("--prompt=7 sheep", *sampled, "--seed=3", "--max-new-tokens=21", "--save-state", tmp_path / "a")
    second = written(*sampled, "--max-new-tokens=20", "--load-state", tmp_path / "a", "--save-state", tmp_path / "b")
    third = written(*sampled, "--max-new-tokens=9", "--load-state", tmp_path / "b")
    assert first + second + third == whole
    assert (tmp_path / "a").stat().st_size == (tmp_path / "b").stat().st_size


def test_a_prompt_behind_a_state_is_printed(written: Callable[..., str], tmp_path: Path) -> None:
    written(*GREEDY, "--max-new-tokens=5", "--save-state", tmp_path / "state")
    assert written("--prompt= goats", "--load-state", tmp_path / "state", "--max-new-tokens=3").startswith(" goats")


def test_stop_texts_end_the_text(written: Callable[..., str]) -> None:
    whole = written(*GREEDY, "--max-new-tokens=60").removeprefix("7 sheep")
    stop = whole[10:13]
    assert written(*GREEDY, "--max-new-tokens=60", "--stop", "@@", stop) == "7 sheep" + whole[: whole.index(stop)]


@pytest.mark.filterwarnings("ignore:weights in .* are read as float32:UserWarning")
def test_weights_are_rounded(written: Callable[..., str], refused: Callable[..., str], tmp_path: Path) -> None:
    whole = written(*GREEDY, "--weights=int8", "--max-new-tokens=20")
    assert whole.startswith("7 sheep")
    first = written(*GREEDY, "--weights=int8", "--max-new-tokens=12", "--save-state", tmp_path / "state")
    going_on = ("--temperature=0", "--load-state", tmp_path / "state")
    assert first + written(*going_on, "--weights=int8", "--max-new-tokens=8") == whole
    assert "its weights rounded to the same type" in refused(*going_on)
    assert written("--prompt=7 sheep", "--weights=bfloat16", "--beams=2").startswith("7 sheep")
    assert "--weights: Expected one of 'float32', 'bfloat16', 'int8' or null" in refused("--weights=int4")


def test_beams_find_a_likelier_text(written: Callable[..., str]) -> None:
    assert written("--prompt=7 sheep", "--max-new-tokens=12", "--beams=1") == written(*GREEDY, "--max-new-tokens=12")
    found = written("--prompt=7 sheep", "--max-new-tokens=12", "--beams=4")
    assert found.startswith("7 sheep")
    assert found == written("--prompt=7 sheep", "--max-new-tokens=12", "--beams=4", "--stop", "@@")


def test_what_cannot_be_is_one_line(refused: Callable[..., str], run: Path, tmp_path: Path) -> None:
    assert "--top-k is 3 with --beams 2, which neither samples" in refused("--beams=2", "--top-k=3")
    assert "--temperature is 0.1 with --beams 2" in refused("--beams=2", "--temperature=0.1")
    assert "--load-state is 'x' with --beams 2" in refused("--beams=2", "--load-state=x")
    assert "--stop has an empty text" in refused("--stop", "a", "")
    assert "--min-p is 2.0; it must be above 0 and at most 1" in refused("--min-p=2")
    assert "--repetition-penalty is 0.0; it must be above 0" in refused("--repetition-penalty=0")
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} cannot be read" in refused("--load-state", nowhere)
    assert "model.safetensors is not a state of a generated text" in refused("--load-state", run / "model.safetensors")
    assert "where no file can be; give a file in a directory that exists" in refused("--save-state", nowhere / "state")


@pytest.mark.parametrize(
    ("stops", "pieces", "passed", "found"),
    [
        (["ab"], ["xa", "b", "c"], ["x", "", ""], True),
        (["ab"], ["xa", "a", "c"], ["x", "a", "ac"], False),
        (["abc", "bd"], ["ab", "d"], ["", "a"], True),
        (["\n\n"], ["a\n", "\n"], ["a", ""], True),
        ([], ["ab", "c"], ["ab", "c"], False),
    ],
)
def test_text_passes_until_a_stop(stops: list[str], pieces: list[str], passed: list[str], found: bool) -> None:
    until_stop = UntilStop(stops)
    assert [until_stop.push(piece) for piece in pieces] == passed
    assert until_stop.found == found


def test_what_was_held_back_in_vain_is_passed_on_at_the_end() -> None:
    until_stop = UntilStop(["abc"])
    assert (until_stop.push("xab"), until_stop.finish()) == ("x", "ab")
