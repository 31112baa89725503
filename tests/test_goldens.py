"""The golden files of the authors' models: the authors' own, and the small ones that are committed here.

The authors' own lie outside the repository, in `../shared/goldens/official` or where FEEDBACK_GOLDENS says.
"""

import math
import os
from pathlib import Path

import pytest
from safetensors import safe_open
from torch import Tensor

from goldens.authors_model import Settings
from goldens.make_goldens import BLOCKS, CASES, FOLDER, make, run_blocks

OFFICIAL = Path(os.environ.get("FEEDBACK_GOLDENS", Path(__file__).parents[2] / "shared/goldens/official"))
TOLERANCE = 1e-12
every_case = pytest.mark.parametrize("case", CASES)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118, it is no mapping


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype, name
        assert actual[name].shape == expected[name].shape, name
        assert (actual[name] - expected[name]).abs().max() <= TOLERANCE, name


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"no golden files from the authors' code in {OFFICIAL}")
@every_case
def test_the_model_reproduces_the_authors_files(case: str) -> None:
    golden, metadata = read(OFFICIAL / f"{case}.safetensors")
    parameters = {name.removeprefix("param."): golden.pop(name) for name in list(golden) if name.startswith("param.")}
    blocks = [(golden.pop(f"block{index}.tokens"), golden.pop(f"block{index}.targets")) for index in range(BLOCKS)]
    assert_same(run_blocks(Settings.from_metadata(metadata), parameters, blocks), golden)


@every_case
def test_the_small_files_are_what_the_script_makes(case: str) -> None:
    (made, made_metadata), (golden, metadata) = make(case), read(FOLDER / f"{case}.safetensors")
    assert made_metadata == metadata
    assert_same(made, golden)


def test_the_small_span_model_trims_one_layer_and_rounds_down_in_the_other() -> None:
    golden, metadata = read(FOLDER / "prenorm_span.safetensors")
    settings = Settings.from_metadata(metadata)
    name = "param.layers.{}.attn.attn.adaptive_span.mask.size_ratio"
    spans = [golden[name.format(layer)].max().item() * settings.attn_lim for layer in range(settings.nlayers)]
    assert [math.ceil(span + settings.adapt_span_len) for span in spans] == [3, 4]
