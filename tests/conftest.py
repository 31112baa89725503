from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from feedback_transformer_pytorch.recurrence.layout import plan
from feedback_transformer_pytorch.recurrence.native import applicability
from feedback_transformer_pytorch.recurrence.native.library import library

# The same examples in every run, and no deadline: the first example pays for torch's warm-up.
settings.register_profile("default", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("default")

# Two pytest workers share two cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        library()  # compiled here, so that no test takes longer for it
        yield


@pytest.fixture
def poisoned_buffers() -> Iterator[None]:
    """What `torch.empty` leaves uninitialised is NaN here, so that nothing unwritten goes unseen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(params=["torch", "native"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What walks the steps; and small tests must have several strips and chunks too."""
    monkeypatch.setattr(plan, "STRIP_QUERIES", 4)
    monkeypatch.setattr(plan, "CHUNK_ROWS", 20)
    monkeypatch.setattr(applicability, "LEAST_SEGMENTS", 1)
    if request.param == "torch":
        monkeypatch.setattr(applicability, "library", lambda: None)
    elif applicability.library() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)
