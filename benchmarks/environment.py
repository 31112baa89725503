"""What a measurement depends on besides the code: the machine and the versions."""

from __future__ import annotations

import os
import platform
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import torch

from feedback_transformer_pytorch.recurrence.native.library import library

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"
MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


def describe(device: str) -> dict[str, Any]:
    """Machine and versions, as plain values."""
    cpu = _cpu_fields()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cpu_family": cpu.get("cpu family"),
        "cpu_model": cpu.get("model"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_flags": [flag for flag in MATRIX_FLAGS if flag in flags],
        "kernel": library() is not None,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "feedback_transformer_pytorch": tomllib.loads(PYPROJECT.read_text())["project"]["version"],
        "commit": commit(ROOT / "src"),
    }


def commit(source: Path) -> str | None:
    """The commit that `source` is checked out from, with a mark if it was changed since; None outside of a checkout."""
    try:
        found = _git(source, "rev-parse", "--short=12", "HEAD")
        return f"{found}, changed" if _git(source, "status", "--porcelain", "--", ".") else found
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_fields() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; nothing where there is none."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    lines = (line.split(":", 1) for line in file.read_text().split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in lines}
