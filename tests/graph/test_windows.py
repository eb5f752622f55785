"""Pool windows that would start in the end padding: shapes and answers are ONNX Runtime's, however they are learnt."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as told

from penstock.errors import Unsupported
from penstock.graph import bind, optimize
from penstock.graph.inference import infer
from penstock.graph.lowering import lower
from tests.graph.small import assert_same, graph, normal, operators, run

# Shape, kernel, pads, stride: in each, a window of rounding up would start behind the input.
LATE = [
    ((2, 6, 8, 9), (2, 5), (0, 4, 1, 3), 3),
    ((1, 4, 5, 13), (3, 2), (1, 1, 2, 0), 2),
    ((1, 1, 1, 1), (2, 2), (0, 0, 1, 1), 2),
    ((1, 2, 4, 4), (2, 3), (0, 0, 1, 2), 2),
]
POOLS = ("MaxPool", "AveragePool")


def _pool(kind: str, kernel: tuple[int, ...], pads: tuple[int, ...], stride: int, more: str = "") -> str:
    sizes = f"kernel_shape = {list(kernel)}, pads = {list(pads)}, strides = {[stride] * len(kernel)}"
    return f"{kind} <ceil_mode = 1, {sizes}{more}>"


def _dims(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize(("shape", "kernel", "pads", "stride"), LATE)
def test_a_window_that_would_start_in_the_padding_does_not_count(
    kind: str, shape: tuple[int, ...], kernel: tuple[int, ...], pads: tuple[int, ...], stride: int
) -> None:
    text = f"(float[{_dims(shape)}] x) => (float[a,b,c,d] y) {{ y = {_pool(kind, kernel, pads, stride)} (x) }}"
    model = graph(text)
    right = run(model, {"x": normal(*shape)})["y"].shape
    infer(model)
    assert tuple(model.graph.outputs[0].shape or ()) == right


def test_what_two_pools_in_a_row_leave_is_counted_one_after_the_other() -> None:
    first, second = _pool("MaxPool", (2, 2), (0, 0, 1, 1), 3), _pool("AveragePool", (1, 2), (0, 0, 0, 1), 2)
    model = graph(f"(float[1,2,9,12] x) => (float[a,b,c,d] y) {{ m = {first} (x) r = Relu(m) y = {second} (r) }}")
    x = normal(1, 2, 9, 12)
    right = run(model, {"x": x})["y"].shape
    infer(model)
    assert tuple(model.graph.outputs[0].shape or ()) == right


@pytest.mark.parametrize("seed", range(4))
def test_shapes_are_those_of_onnx_runtime(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    judged = corrected = 0
    for _ in range(100):
        shape = (1, 1, *numbers.integers(1, 14, 2).tolist())
        kernel = tuple(numbers.integers(1, 6, 2).tolist())
        pads = tuple(int(numbers.integers(0, kernel[side % 2])) for side in range(4))
        dilations = f", dilations = {numbers.integers(1, 3, 2).tolist()}"
        layer = _pool("MaxPool", kernel, pads, int(numbers.integers(1, 4)), dilations)
        model = graph(f"(float[{_dims(shape)}] x) => (float[a,b,c,d] y) {{ y = {layer} (x) }}")
        try:
            right = run(model, {"x": normal(*shape)})["y"].shape
        except (told.Fail, told.RuntimeException):  # a window that does not fit
            continue
        plain = onnx.shape_inference.infer_shapes(ir.to_proto(model)).graph.output[0].type.tensor_type.shape
        infer(model)
        assert tuple(model.graph.outputs[0].shape or ()) == right, (shape, layer)
        judged, corrected = judged + 1, corrected + (tuple(each.dim_value for each in plain.dim) != right)
    assert judged > 80
    assert corrected > 10


@pytest.mark.parametrize("bound", [True, False])
def test_what_is_computed_of_the_shape_is_right(bound: bool) -> None:
    shape, kernel, pads, stride = LATE[0]
    text = f"""(float[N,6,8,9] x) => (float[a,b] y) {{
        m = {_pool("MaxPool", kernel, pads, stride)} (x)
        s = Shape <start = 2, end = 4> (m)
        minus = Constant <value = int64[1] {{-1}}> ()
        to = Concat <axis = 0> (minus, s)
        r = Reshape (m, to)
        y = ReduceSum <keepdims = 0> (r, axes)
    }}"""
    model = graph(text, {"axes": np.array([2], np.int64)})
    optimized = optimize(model, shapes={"x": shape} if bound else None).model
    if bound:
        assert "Shape" not in operators(optimized)
    assert_same(model, optimized, {"x": normal(*shape)})


def test_a_model_that_declares_the_right_size_is_taken() -> None:
    shape, kernel, pads, stride = LATE[0]
    layer = _pool("AveragePool", kernel, pads, stride)
    open_ended = graph(f"(float[{_dims(shape)}] x) => (float[a,b,c,d] y) {{ y = {layer} (x) }}")
    right = run(open_ended, {"x": normal(*shape)})["y"].shape
    told = f"(float[N,6,8,9] x) => (float[N,{_dims(right[1:])}] y)"
    model = graph(f"{told} {{ r = Relu(x) y = {layer} (r) }}")
    assert tuple(bind(model, {"x": shape}).graph.outputs[0].shape or ()) == right


@pytest.mark.parametrize("kind", POOLS)
def test_a_window_larger_than_the_padded_input_has_no_step(kind: str) -> None:
    layer = f"{kind} <kernel_shape = [5, 3], strides = [3, 1]>"
    text = f"(float[1,2,3,3] x) => (float[1,2,a,b] y) {{ r = Relu(x) y = {layer} (r) }}"
    with pytest.raises(Unsupported, match="does not fit"):
        lower(optimize(graph(text), shapes={"x": (1, 2, 3, 3)}).model)
