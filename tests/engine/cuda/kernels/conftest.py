"""The kernels run where there is a GPU on it, elsewhere through Triton's interpreter, on tensors of the CPU."""

import importlib.util
import os
from collections.abc import Iterator

import pytest


def _gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


if not _gpu():
    # Read while triton is imported and when a kernel is defined: before any test module does either.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests compile anew, and leave nothing where a user's builds look."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def device() -> str:
    import torch

    torch.manual_seed(0)
    return "cuda" if _gpu() else "cpu"
