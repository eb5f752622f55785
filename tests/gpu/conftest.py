"""What is here runs on an NVIDIA GPU and nowhere else: elsewhere it is collected, and skipped with the reason."""

import importlib.util
from typing import Final

import pytest

DEVICE: Final = "cuda"


def missing() -> str:
    """Why nothing can run here; empty where it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else "torch sees no NVIDIA GPU"


@pytest.fixture(autouse=True, scope="session")
def _on_a_gpu() -> None:
    if why := missing():
        pytest.skip(why)
