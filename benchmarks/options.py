"""The options that all measurements share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from contestants import CONTESTANTS
from exactness import require_exact
from reference import ReferenceUnavailable, load_reference
from shapes import SCALING, SHAPES, Shape
from workload import PRECISIONS


def parser(description: str, devices: Sequence[str] = ("cpu",)) -> argparse.ArgumentParser:
    """The options; `devices` are those that the measurement can be made on."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=["a", "b", "c", "d", "e"])
    options.add_argument("--scaling", action="store_true", help="the series over T instead of --shapes")
    options.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    options.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    options.add_argument("--device", choices=devices, default="cpu")
    options.add_argument("--out", type=Path, help="JSON file; default: by name in benchmarks/results")
    options.add_argument("--skip-tests", action="store_true", help="for development; recorded in the JSON")
    return options


def chosen_shapes(args: argparse.Namespace) -> list[Shape]:
    return list(SCALING.values()) if args.scaling else [SHAPES[name] for name in args.shapes]


def prepare(args: argparse.Namespace) -> None:
    """Runs the tests of exactness, and leaves version 0.0.11 out, with a word, where it cannot be had.

    Raises:
        SystemExit: a test is red, or there is no such device.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device is cuda, but torch sees no GPU")
    if "reference" in args.contestants:
        try:
            load_reference()
        except ReferenceUnavailable as reason:
            print(f"without the reference: {reason}")
            args.contestants.remove("reference")
    if not args.skip_tests:
        require_exact()
