"""The real text recogniser, where its package is installed."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recogniser() -> Path:
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("rapidocr, whose wheel carries the model, is not installed")
    return Path(spec.submodule_search_locations[0]) / "models" / "PP-OCRv6_rec_small.onnx"
