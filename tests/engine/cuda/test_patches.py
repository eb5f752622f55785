"""Convolutions whose windows tile the picture, as one product, against ONNX Runtime."""

from dataclasses import replace

import numpy as np
import pytest

from penstock.errors import Unsupported

pytest.importorskip("torch")

from tests.engine.cuda.reference import error, execute, lowered
from tests.graph.small import graph, run

pytestmark = pytest.mark.torch

CASES = [
    ("Conv <strides=[4,4]>", (2, 3, 8, 12), (5, 3, 4, 4), (2, 5, 2, 3)),
    ("Conv <strides=[2,3]>", (1, 6, 4, 9), (8, 6, 2, 3), (1, 8, 2, 3)),
    ("ConvTranspose <strides=[2,2]>", (2, 6, 5, 7), (6, 4, 2, 2), (2, 4, 10, 14)),
    ("ConvTranspose <strides=[3,2]>", (1, 3, 4, 4), (3, 5, 3, 2), (1, 5, 12, 8)),
]
# Windows that overlap, leave something out, or reach beyond the picture.
OTHERS = [
    ("Conv <strides=[2,2]>", (1, 3, 9, 9), (4, 3, 3, 3), (1, 4, 4, 4)),
    ("Conv <strides=[2,2]>", (1, 3, 9, 8), (4, 3, 2, 2), (1, 4, 4, 4)),
    ("Conv <strides=[2,2], pads=[1,1,1,1]>", (1, 3, 8, 8), (4, 3, 2, 2), (1, 4, 5, 5)),
    ("ConvTranspose <strides=[2,2]>", (1, 3, 4, 4), (3, 5, 3, 3), (1, 5, 9, 9)),
]


def model_of(operator: str, x: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...]):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    shapes = [",".join(map(str, each)) for each in (x, out)]
    name, _, attributes = operator.partition(" ")
    channels = out[1]
    body = f"y = {name} {attributes} (x, w, b)"
    weights = {
        "w": rng.standard_normal(weight).astype(np.float32),
        "b": rng.standard_normal(channels).astype(np.float32),
    }
    return graph(f"(float[{shapes[0]}] x) => (float[{shapes[1]}] y) {{ {body} }}", weights)


@pytest.mark.parametrize("case", CASES)
def test_tiling_windows_are_one_product(case) -> None:  # type: ignore[no-untyped-def]
    source = model_of(*case)
    inputs = {"x": np.random.default_rng(2).standard_normal(case[1]).astype(np.float32)}
    steps, weights = lowered(source, inputs)
    chosen = tuple(
        replace(step, implementation="patches") if step.kind.startswith("conv") else step for step in steps.steps
    )
    assert any(step.implementation for step in chosen)
    found = execute(replace(steps, steps=chosen), weights, inputs)["y"]
    assert error(found, run(source, inputs)["y"]) < 2e-6


@pytest.mark.parametrize("case", OTHERS)
def test_other_windows_do_not_fit(case) -> None:  # type: ignore[no-untyped-def]
    source = model_of(*case)
    inputs = {"x": np.zeros(case[1], np.float32)}
    steps, weights = lowered(source, inputs)
    chosen = tuple(
        replace(step, implementation="patches") if step.kind.startswith("conv") else step for step in steps.steps
    )
    with pytest.raises(Unsupported, match="patches"):
        execute(replace(steps, steps=chosen), weights, inputs)
