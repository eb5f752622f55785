"""Convolutions over pictures of a few planes, which read rows of their windows, against ONNX Runtime."""

from dataclasses import dataclass, replace

import onnx_ir as ir
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.executor import Executor
from penstock.engine.lowered import LoweredGraph
from penstock.graph import boundary
from tests.engine.cuda.reference import Arrays, error, execute, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch


@dataclass(frozen=True)
class Case:
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    size: tuple[int, int]
    channels: int = 3
    batch: int = 1

    def model(self) -> ir.Model:
        high, wide = (
            (self.size[axis] + self.pads[axis] + self.pads[axis + 2] - self.kernel[axis]) // self.strides[axis] + 1
            for axis in (0, 1)
        )
        attributes = f"strides={list(self.strides)}, pads={list(self.pads)}"
        body = f"c = Conv <{attributes}> (x, w, b) y = Relu(c)"
        text = f"(float[{_text(self.shape)}] x) => (float[{self.batch},8,{high},{wide}] y) {{ {body} }}"
        weights = {"w": normal(8, self.channels, *self.kernel, seed=1), "b": normal(8, seed=2)}
        return graph(text, weights)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.channels, *self.size

    def inputs(self) -> Arrays:
        return {"x": normal(*self.shape, seed=3)}


def _text(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


CASES = {
    "seven by two": Case((7, 7), (2, 2), (3, 3, 3, 3), (32, 32)),
    "seven by two, odd": Case((7, 7), (2, 2), (3, 3, 3, 3), (47, 61), batch=3),
    "three by two": Case((3, 3), (2, 2), (1, 1, 1, 1), (16, 24), batch=3),
    "three by two, odd": Case((3, 3), (2, 2), (1, 1, 1, 1), (47, 61)),
    "three by two, padded as TensorFlow does": Case((3, 3), (2, 2), (0, 0, 1, 1), (16, 16), batch=3),
    "three by one": Case((3, 3), (1, 1), (1, 1, 1, 1), (15, 18), batch=3),
    "three by one, all sides unlike": Case((3, 3), (1, 1), (2, 0, 1, 3), (9, 11)),
    "strides that leave rows and columns out": Case((3, 2), (4, 5), (0, 1, 0, 0), (14, 18), batch=3),
    "eleven by four": Case((11, 11), (4, 4), (2, 2, 2, 2), (63, 63)),
    "rows that tile, columns that overlap": Case((2, 3), (2, 1), (0, 0, 0, 0), (8, 8), batch=3),
    "no column left over": Case((5, 5), (1, 1), (0, 0, 0, 0), (5, 5)),
    "one pixel, one plane": Case((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), channels=1),
    "one plane": Case((5, 3), (2, 1), (2, 1, 2, 1), (12, 17), channels=1, batch=3),
    "two planes": Case((3, 3), (2, 2), (1, 1, 1, 1), (10, 9), channels=2, batch=3),
    "four planes": Case((3, 3), (2, 2), (1, 1, 1, 1), (10, 9), channels=4, batch=3),
}


def implemented(steps: LoweredGraph, name: str) -> LoweredGraph:
    chosen = tuple(replace(step, implementation=name) if step.kind == "conv" else step for step in steps.steps)
    return replace(steps, steps=chosen)


@pytest.mark.parametrize("name", CASES)
def test_windows_read_in_rows_give_the_same_numbers(name: str) -> None:
    case = CASES[name]
    steps, weights = lowered(case.model(), case.inputs())
    (conv,) = (step for step in steps.steps if step.kind == "conv")
    assert conv.attributes["kernel"] == (case.kernel[0], 1)
    expected = run(case.model(), case.inputs())["y"]
    assert error(execute(steps, weights, case.inputs())["y"], expected) < 2e-6
    if conv.attributes["strides"] == (case.kernel[0], 1):
        assert error(execute(implemented(steps, "patches"), weights, case.inputs())["y"], expected) < 2e-6


@pytest.mark.parametrize("name", CASES)
def test_our_kernels_read_pixels_that_overlap(name: str, device: str) -> None:
    case = CASES[name]
    executor = Executor(*lowered(case.model(), case.inputs()), device, "fp16", ("triton",))
    ours = {bound.kind for bound in executor.program if bound.implementation == "triton"}
    assert ours >= {"pad", "conv"}
    found = executor.run({"x": torch.from_numpy(case.inputs()["x"]).to(device)})["y"].cpu().numpy()
    assert error(found, run(case.model(), case.inputs())["y"]) < 2e-3


def test_a_picture_given_pixel_by_pixel_is_read_where_it_lies(device: str) -> None:
    text = """(float[2,13,10,3] x) => (float[2,8,7,5] y) { t = Transpose <perm=[0,3,1,2]> (x)
        y = Conv <strides=[2,2], pads=[1,1,1,1]> (t, w) }"""
    model, inputs = graph(text, {"w": normal(8, 3, 3, 3, seed=1)}), {"x": normal(2, 13, 10, 3, seed=2)}
    executor = Executor(*lowered(model, inputs), device, "fp16", ("triton",))
    assert [(each.kind, each.implementation) for each in executor.program][:2] == [
        ("pad", "triton"),
        ("conv", "triton"),
    ]
    found = executor.run({"x": torch.from_numpy(inputs["x"]).to(device)})["y"].cpu().numpy()
    assert error(found, run(model, inputs)["y"]) < 2e-3


PICTURES = {
    "planes of bytes": ("x:uint8,mean=123.675/116.28/103.53,std=58.395/57.12/57.375", (2, 3, 13, 10)),
    "pixels of bytes": ("x:uint8,nhwc,mean=123.675/116.28/103.53,std=58.395/57.12/57.375", (2, 13, 10, 3)),
    "one number for all": ("x:uint8,nhwc,mean=127.5,std=127.5", (2, 13, 10, 3)),
    "numbers of each plane, FP32": ("x:float32,mean=120/110/100", (2, 3, 13, 10)),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("implementation", ["", "triton"])
def test_a_mean_is_taken_away_on_the_way(name: str, implementation: str, device: str) -> None:
    text, shape = PICTURES[name]
    body = "y = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w)"
    plain = graph(f"(float[2,3,13,10] x) => (float[2,8,7,5] y) {{ {body} }}", {"w": normal(8, 3, 3, 3, seed=1)})
    model = boundary.preprocess(plain, text)
    x = (127 + 60 * normal(*shape, seed=2)).clip(0, 255).astype("uint8" if "uint8" in text else "float32")
    precision = "fp16" if implementation else "fp32"
    executor = Executor(*lowered(model, {"x": x}), device, precision, (implementation,) if implementation else ())
    (pad,) = (each for each in executor.program if each.kind == "pad")
    assert pad.implementation == (implementation or "torch")
    assert not any(each.kind == "pointwise" for each in executor.program)
    found = executor.run({"x": torch.from_numpy(x).to(device)})["y"].float().cpu().numpy()
    assert error(found, run(model, {"x": x})["y"]) < (2e-3 if implementation else 2e-6)
