"""The three models of PP-OCR: what is left of them, that they answer the same, and how long it takes.

Where silero-vad is installed its voice detectors are tried, too: they hold If nodes several levels deep.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from penstock.graph import bind, load, optimize, signature, sources
from tests.graph.small import assert_same, normal, operators

FOUND = importlib.util.find_spec("rapidocr")
installed = pytest.mark.skipif(FOUND is None, reason="the models come with rapidocr")
VOICE = importlib.util.find_spec("silero_vad")
MODELS = Path(FOUND.origin or "").parent / "models" if FOUND else Path()


@dataclass(frozen=True)
class Real:
    file: str
    shape: tuple[int, ...]
    nodes: int
    gone: tuple[str, ...]


REAL = [
    Real("PP-OCRv6_det_small.onnx", (1, 3, 96, 160), 464, ("Identity", "BatchNormalization")),
    Real("PP-OCRv6_rec_small.onnx", (2, 3, 48, 96), 480, ("Identity", "BatchNormalization")),
    Real(
        "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        (2, 3, 48, 192),
        566,
        ("Constant", "BatchNormalization", "Shape", "Cast"),
    ),
]


@installed
@pytest.mark.parametrize("real", REAL, ids=lambda real: real.file)
@pytest.mark.parametrize("bound", [False, True], ids=["free", "bound"])
def test_a_real_model_answers_the_same(real: Real, bound: bool) -> None:
    model = load(MODELS / real.file)
    assert len(model.graph) == real.nodes
    optimized = optimize(model, shapes={"x": real.shape} if bound else None)
    # Two and a half seconds is ten times what it takes, on a machine that others use as well.
    assert sum(record.seconds for record in optimized.records) < 2.5
    left = operators(optimized.model)
    assert sum(left.values()) < 0.6 * real.nodes
    assert not set(real.gone) & set(left)
    names = {node.name for node in model.graph}
    assert all(set(sources(node)) <= names for node in optimized.model.graph)
    inputs = {"x": np.random.default_rng(5).uniform(-1, 1, real.shape).astype(np.float32)}
    assert_same((MODELS / real.file).read_bytes(), optimized.model, inputs)


@installed
@pytest.mark.parametrize("real", REAL, ids=lambda real: real.file)
def test_a_bound_real_model_knows_every_shape(real: Real) -> None:
    fixed = bind(load(MODELS / real.file), {"x": real.shape})
    assert not {"Shape", "Constant"} & set(operators(fixed))
    for node in fixed.graph:
        for value in node.outputs:
            assert value.shape is not None
            assert all(isinstance(size, int) for size in value.shape)
    (given,), (answered,) = signature(fixed)
    assert given.shape == real.shape
    assert -1 not in answered.shape


@installed
@pytest.mark.parametrize("real", REAL, ids=lambda real: real.file)
def test_a_batch_can_be_bound_alone(real: Real) -> None:
    free, shape = load(MODELS / real.file), real.shape
    declared = signature(free)[0][0].shape
    optimized = optimize(free, shapes={"x": (shape[0], *declared[1:])}).model
    assert signature(optimized)[0][0].shape == (shape[0], *declared[1:])
    inputs = {"x": np.random.default_rng(6).uniform(-1, 1, shape).astype(np.float32)}
    assert_same((MODELS / real.file).read_bytes(), optimized, inputs)


@pytest.mark.skipif(VOICE is None, reason="the models come with silero-vad")
@pytest.mark.parametrize("file", ["silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad_op18_ifless.onnx"])
@pytest.mark.parametrize("bound", [False, True], ids=["free", "bound"])
def test_a_voice_detector_with_branches_answers_the_same(file: str, bound: bool) -> None:
    path = Path(VOICE.origin or "").parent / "data" / file if VOICE else Path()
    inputs = {
        "input": normal(1, 576),
        "state": normal(2, 1, 128),
        "sr": np.array(16000, np.int64),
    }
    optimized = optimize(load(path), shapes={name: array.shape for name, array in inputs.items()} if bound else None)
    assert_same(path.read_bytes(), optimized.model, inputs)
