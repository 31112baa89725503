"""The presets that come with the package: YAML files of training options."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError

PRESETS = Path(__file__).parents[2] / "presets"


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def preset_summaries() -> str:
    """The presets, each with what it is for: the first line of its file, a comment."""
    found = []
    for name in preset_names():
        line = preset_file(name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").rstrip(".")
        found.append(f"{name} ({line[0].lower()}{line[1:]})")
    return ", ".join(found)


def preset_file(name: str) -> Path:
    """The YAML file of a preset.

    Raises:
        InputError: there is no such preset.
    """
    if name not in preset_names():
        raise InputError(f"--preset is {name!r}; it must be {' or '.join(preset_names())}")
    return PRESETS / f"{name}.yaml"
