"""Whole models as steps, in FP32 on the CPU, against ONNX Runtime without any optimisation of its own.

The models of `benches/models` are made first (`python -m benches.models NAME`); those that are not there are skipped.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from penstock.graph import load
from tests.engine.cuda.reference import Array, assert_agrees

pytestmark = pytest.mark.torch

FOUND = importlib.util.find_spec("rapidocr")
OCR = Path(FOUND.origin or "").parent / "models" if FOUND else None
MADE = Path(__file__).parents[3] / ".peers" / "models"

# A hundred layers, each of sums of a few thousand products in another order. ONNX Runtime with its own optimisations is
# up to 1e-5 off itself without them, on the models whose activations are stretched like a trained network's.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Model:
    name: str
    shape: tuple[int, ...]
    steps: int
    """How many there are at batch 2: more would mean that something is no longer joined."""

    slow: bool = False


MODELS = [
    Model("PP-OCRv6_det_small", (3, 96, 160), 76),
    Model("PP-OCRv6_rec_small", (3, 48, 96), 63),
    Model("ch_ppocr_mobile_v2.0_cls_mobile", (3, 48, 192), 76),
    Model("crnn", (1, 32, 100), 14),
    Model("crnn_bilstm", (1, 32, 100), 19),
    Model("mobilenetv2", (3, 224, 224), 55),
    Model("efficientnet_lite0", (3, 224, 224), 51),
    Model("resnet34", (3, 224, 224), 40),
    Model("resnet50", (3, 224, 224), 57, slow=True),
    Model("vit_b32", (3, 224, 224), 92, slow=True),
    Model("yolo", (3, 640, 640), 92, slow=True),
]


def page(batch: int, shape: tuple[int, ...]) -> Array:
    """Rows of strokes on paper: on pure noise a text detector answers 1e-5 everywhere, of which any error is large."""
    random = np.random.default_rng(batch)
    _, height, width = shape
    image = np.ones((batch, *shape), np.float32)
    for top in range(height // 8, height - 12, 28):
        for left in range(10, width - 10, 9):
            image[:, :, top : top + 12, left : left + 2] = -1
            bar = top + 4 * (left % 3)
            image[:, :, bar : bar + 2, left : left + 6] = -1
    noise: Array = random.normal(0, 0.05, image.shape).astype(np.float32)
    return image + noise


def path_of(name: str) -> Path:
    for folder in (OCR, MADE):
        if folder is not None and (folder / f"{name}.onnx").exists():
            return folder / f"{name}.onnx"
    pytest.skip(f"{name} is not on this machine")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=[pytest.mark.slow] if model.slow else [], id=model.name) for model in MODELS],
)
def test_a_model_agrees_with_onnx_runtime(model: Model, batch: int) -> None:
    path = path_of(model.name)
    inputs = {"x": page(batch, model.shape)}
    graph = assert_agrees(load(path), path.read_bytes(), inputs, TOLERANCE)
    assert len(graph.steps) <= model.steps


@pytest.mark.parametrize("batch", [1, 2])
def test_a_sentence_encoder_agrees_with_onnx_runtime(batch: int) -> None:
    path = path_of("minilm")
    mask = np.ones((batch, 24), np.int64)
    mask[-1, 17:] = 0
    tokens = np.random.default_rng(batch).integers(1000, 30000, (batch, 24))
    inputs = {"input_ids": tokens, "attention_mask": mask}
    graph = assert_agrees(load(path), path.read_bytes(), inputs, TOLERANCE)
    assert len(graph.steps) <= 58
    assert sum(step.kind == "attention" for step in graph.steps) == 6
