import pytest
import torch
from hypothesis import settings

# The same examples in every run, and no deadline: the first example pays for torch's warm-up.
settings.register_profile("default", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("default")

# Two pytest workers share two cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
