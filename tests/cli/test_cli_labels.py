"""The command line with labelled data, as a user meets it."""

import json
from pathlib import Path

import pytest

from feedback_transformer_pytorch import cli

SMALL = [
    *("--dim=8", "--depth=1", "--heads=2", "--dim-head=4", "--mem-len=8", "--batch-size=2", "--block-len=12"),
    *("--max-updates=2", "--eval-every=2", "--eval-len=48"),
]


def write(path: Path) -> Path:
    lines = [{"tokens": ["if", n % 3, "then"], "labels": [None, None, "yes" if n % 3 else "no"]} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_task_is_learned_measured_and_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, model in zip(runs, ("feedback", "parallel"), strict=True):
        assert cli.main(["train", "--task=s3", f"--model={model}", f"--out={run}", *SMALL]) == 0
    capsys.readouterr()
    figures, picture = tmp_path / "figures.json", tmp_path / "accuracy.png"
    asked = ["--length=32", "--sequences=20", f"--json={figures}", f"--plot={picture}"]
    assert cli.main(["eval", str(runs[0]), *asked]) == 0
    shown = capsys.readouterr().out
    assert "% of 640 labels right" in shown
    assert shown.endswith("(20 sequences of task s3, length 32)\n")
    assert len(json.loads(figures.read_text())["by_position"]) == 32
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["plot", *map(str, runs), f"--out={tmp_path / 'runs.png'}"]) == 0


def test_files_of_labels_are_learned_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = write(tmp_path / "data.jsonl"), tmp_path / "run"
    assert cli.main(["train", str(data), "--labelled=sequences", f"--out={run}", *SMALL]) == 0
    assert "38 sequences to train on, 2 held out; 7 words" in capsys.readouterr().out
    assert cli.main(["eval", str(run), str(data)]) == 0
    assert "% of 40 labels right, " in capsys.readouterr().out


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run, text = write(tmp_path / "data.jsonl"), tmp_path / "run", tmp_path / "text.txt"
    text.write_text("sheep and goats\n" * 200)
    assert cli.main(["train", "--task=z2", f"--out={run}", *SMALL]) == 0
    assert cli.main(["train", str(text), f"--out={tmp_path / 'other'}", *SMALL]) == 0
    capsys.readouterr()
    new = f"--out={tmp_path / 'new'}"
    for arguments, message in (
        (["train", "--task=s1", new], "s1"),
        (["train", "--task=z2", str(text), new], "needs no data"),
        (["train", str(text), "--labelled=sequences", new, *SMALL], "text.txt', line 1 is not JSON"),
        (["train", str(data), "--labelled=lines", new], "--labelled"),
        (["train", "--task=s3", f"--out={run}"], "already holds a run, with --task 'z2', not 's3'"),
        (["generate", str(run)], "was trained on labels and has no tokenizer"),
        (["eval", str(run), "--task=s3"], "whose words are not those that"),
        (["eval", str(run), "--cache=cache"], "was trained on labels, which are not cached; leave it out"),
        (["plot", str(run), str(tmp_path / "other")], "give runs with the same metric"),
    ):
        assert cli.main(arguments) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
