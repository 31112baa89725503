import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest


@pytest.fixture
def give_standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(text: bytes) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text)))

    return give
