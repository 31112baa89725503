from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

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
