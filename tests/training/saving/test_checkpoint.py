import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from feedback_transformer_pytorch.errors import InputError
from feedback_transformer_pytorch.training.processes import Processes
from feedback_transformer_pytorch.training.saving.checkpoint import Checkpoint, Checkpoints

CONTENT = Checkpoint(
    update=5,
    model={"weight": torch.arange(4.0).reshape(2, 2), "bias": torch.ones(2)},
    optimizer={"weight/step": torch.tensor(3.0)},
    streams={
        range(4): {"memory.keys": torch.full((4, 1, 2), 0.5, dtype=torch.bfloat16), "random.cpu": torch.arange(3)}
    },
    state={"data": "0123", "best": [2, 1.5], "meter": {"losses": [0.1, 0.2]}},
)
FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json", "streams-0-4.safetensors"]


@pytest.fixture
def checkpoints(tmp_path: Path, processes: Processes) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(CONTENT, processes)
    return checkpoints


def change_manifest(checkpoints: Checkpoints, **changes: Any) -> None:
    path = checkpoints.folder(5) / "manifest.json"
    manifest = {**json.loads(path.read_bytes()), **changes}
    path.write_text(json.dumps(manifest, indent=1) + "\n")


def test_a_checkpoint_comes_back_bit_for_bit(checkpoints: Checkpoints) -> None:
    loaded = checkpoints.load(5)
    assert loaded.update == 5
    for found, saved in zip(
        (loaded.model, loaded.optimizer, loaded.streams[range(4)]),
        (CONTENT.model, CONTENT.optimizer, CONTENT.streams[range(4)]),
        strict=True,
    ):
        torch.testing.assert_close(dict(found), dict(saved), rtol=0, atol=0)
    assert loaded.streams.keys() == CONTENT.streams.keys()
    assert loaded.state == CONTENT.state
    assert sorted(file.name for file in checkpoints.folder(5).iterdir()) == FILES


def test_where_there_are_none_there_are_no_updates(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").updates() == []


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(checkpoints: Checkpoints, name: str) -> None:
    (checkpoints.folder(5) / name).unlink()
    with pytest.raises(InputError, match=f"00000005/{name} is damaged: No such file or directory; "):
        checkpoints.load(5)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_byte_is_found(checkpoints: Checkpoints, name: str) -> None:
    path = checkpoints.folder(5) / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(InputError, match="00000005"):
            checkpoints.load(5)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_is_named(checkpoints: Checkpoints, name: str) -> None:
    path = checkpoints.folder(5) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name} is damaged"):
        checkpoints.load(5)


def test_a_renamed_folder_is_refused(checkpoints: Checkpoints) -> None:
    checkpoints.folder(5).rename(checkpoints.folder(6))
    with pytest.raises(InputError, match="belongs to update 5; give the folder its own name back"):
        checkpoints.load(6)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "inside/secret", "..", ""])
def test_nothing_outside_the_folder_is_read(checkpoints: Checkpoints, name: str) -> None:
    secret = b"secret"
    (checkpoints.path / "secret").write_bytes(secret)
    files = json.loads((checkpoints.folder(5) / "manifest.json").read_bytes())["files"]
    entry = {"bytes": len(secret), "sha256": hashlib.sha256(secret).hexdigest()}
    change_manifest(checkpoints, files={**files, name: entry})
    with pytest.raises(InputError, match="is damaged"):
        checkpoints.load(5)


def test_another_format_is_refused(checkpoints: Checkpoints) -> None:
    change_manifest(checkpoints, format=2)
    with pytest.raises(InputError, match="has format 2; this version reads format 1"):
        checkpoints.load(5)


def test_what_a_crash_left_is_no_checkpoint_and_in_nobodys_way(checkpoints: Checkpoints, processes: Processes) -> None:
    left = checkpoints.path / "00000006.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (left / "streams-0-2.safetensors").write_bytes(b"of other processes")
    assert checkpoints.updates() == [5]
    checkpoints.save(dataclasses.replace(CONTENT, update=6), processes)
    assert sorted(file.name for file in checkpoints.folder(6).iterdir()) == FILES


def test_what_is_not_kept_is_deleted(checkpoints: Checkpoints, processes: Processes) -> None:
    for update in (7, 123_456_789):
        checkpoints.save(dataclasses.replace(CONTENT, update=update), processes)
    assert checkpoints.updates() == [5, 7, 123_456_789]
    checkpoints.keep({5, 123_456_789, 999})
    assert [entry.name for entry in sorted(checkpoints.path.iterdir())] == ["00000005", "123456789"]
