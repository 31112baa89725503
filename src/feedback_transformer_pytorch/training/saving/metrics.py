"""The file metrics.jsonl of a run: a JSON object in each line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import append_line, sync, truncate_synced, writing


class MetricsFile:
    """The records of a run, each with a kind: "xz", "train" or "validation"."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
            InputError: the file cannot be written.
        """
        append_line(self.path, json.dumps(record))

    def records(self) -> list[dict[str, Any]]:
        """All lines; none if the file does not exist.

        Raises:
            InputError: a line is not a JSON object with a kind.
        """
        records = []
        for number, line in enumerate(self._content().splitlines(), 1):
            try:
                record = json.loads(line)
                record["kind"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{self.path}, line {number} is damaged: {error!r}; resume the run, which repairs the end of "
                    "the file, or restore it from a copy"
                ) from error
            records.append(record)
        return records

    def validated_updates(self) -> list[int]:
        """The updates of all validations, whatever other lines hold."""
        found = (_validated_update(line) for line in self._content().splitlines())
        return [update for update in found if update is not None]

    def so_far(self) -> dict[str, Any]:
        """Waits until the file is on the disk; returns its length in bytes and its SHA-256."""
        sync(self.path)
        content = self._content()
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def truncate(self, so_far: Mapping[str, Any], update: int) -> None:
        """Deletes the lines that follow the state `so_far`, except a validation of `update` directly after it.

        Args:
            so_far: a result of `so_far`.

        Raises:
            InputError: the lines before have changed, or the file cannot be written.
        """
        content = self._content()
        kept, rest = content[: so_far["bytes"]], content[so_far["bytes"] :]
        if hashlib.sha256(kept).hexdigest() != so_far["sha256"]:
            raise InputError(
                f"{self.path} is damaged: its first {so_far['bytes']} bytes differ from those at the "
                "checkpoint; restore it from a copy"
            )
        if _validated_update(rest.partition(b"\n")[0]) == update:  # after a stop, the resumed run made this validation
            kept += rest.partition(b"\n")[0] + b"\n"
        if kept != content:
            truncate_synced(self.path, len(kept))

    def delete(self) -> bool:
        """Deletes the file; returns whether it existed.

        Raises:
            InputError: it cannot be deleted.
        """
        existed = self.path.exists()
        with writing(self.path):
            self.path.unlink(missing_ok=True)
        return existed

    def _content(self) -> bytes:
        return self.path.read_bytes() if self.path.is_file() else b""


def _validated_update(line: bytes) -> int | None:
    """The update of a validation; None if the line is another record, or damaged."""
    try:
        record = json.loads(line)
        update: int = record["update"]
        return update if record["kind"] == "validation" else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
