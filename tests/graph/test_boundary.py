"""Preprocessing and reduction inside the graph: the right numbers, folded where that is exact, and clear refusals."""

import numpy as np
import onnx_ir as ir
import pytest

from penstock.engine.plan import Reduction
from penstock.errors import InvalidArgument
from penstock.graph import boundary, optimize, signature
from tests.graph.small import Array, assert_same, graph, normal, operators, run

WEIGHTS = {"w": normal(4, 3, 3, 3), "b": normal(4, seed=1)}


def convolution(pads: str = "[0,0,0,0]") -> ir.Model:
    return graph(f"(float[N,3,H,W] x) => (float[N,4,?,?] y) {{ y = Conv<pads={pads}>(x, w, b) }}", WEIGHTS)


def picture(*shape: int) -> Array:
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("mean", "std"),
    [("127.5", "127.5"), ("123.675/116.28/103.53", "58.395/57.12/57.375"), ("0", "255"), ("10", "1"), ("1/2/3", "2")],
)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_preprocessing_gives_what_numpy_gives(mean: str, std: str, layout: str) -> None:
    model = convolution("[1,1,1,1]")
    inside = boundary.preprocess(model, f"x:uint8,{layout},mean={mean},std={std}")
    raw = picture(2, 8, 9, 3) if layout == "nhwc" else picture(2, 3, 8, 9)
    planes = raw.transpose(0, 3, 1, 2) if layout == "nhwc" else raw
    numbers = [
        np.array([float(each) for each in text.split("/")], np.float32).reshape(-1, 1, 1) for text in (mean, std)
    ]
    expected = run(model, {"x": ((planes - numbers[0]) / numbers[1]).astype(np.float32)})["y"]
    for form in (inside, optimize(inside).model, optimize(inside, shapes={"x": raw.shape}).model):
        (spec,) = signature(form)[0]
        assert (spec.name, spec.datatype, spec.accepts(raw.shape)) == ("x", "UINT8", True)
        got = run(form, {"x": raw})["y"]
        # 255 levels of a few hundred times 6e-8, through sums of 27 products: 1e-4 of the largest.
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("pads", "text", "left"),
    [
        ("[0,0,0,0]", "x:uint8,mean=127.5,std=127.5", {"Cast": 1, "Conv": 1}),
        ("[1,1,1,1]", "x:uint8,mean=127.5,std=127.5", {"Cast": 1, "Sub": 1, "Conv": 1}),
        ("[1,1,1,1]", "x:uint8,nhwc,std=255", {"Cast": 1, "Transpose": 1, "Conv": 1}),
        ("[0,0,0,0]", "x:float32,nchw,mean=1/2/3,std=4/5/6", {"Conv": 1}),
    ],
)
def test_preprocessing_is_folded_where_that_is_exact(pads: str, text: str, left: dict[str, int]) -> None:
    assert operators(optimize(boundary.preprocess(convolution(pads), text)).model) == left


def test_a_layout_alone_only_moves_data() -> None:
    model = boundary.preprocess(convolution(), "x:nhwc")
    assert operators(model) == {"Transpose": 1, "Conv": 1}
    assert [str(spec) for spec in signature(model)[0]] == ["x FP32[-1, -1, -1, 3]"]
    assert signature(model)[0][0].axes == ("N", "H", "W", None)


def test_an_input_that_is_answered_directly_keeps_working() -> None:
    model = graph("(float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    inside = boundary.preprocess(model, "x:uint8,mean=1")
    assert run(optimize(inside).model, {"x": np.array([[1, 2, 3]], np.uint8)})["y"].tolist() == [[0, 1, 2]]


def test_nodes_of_the_model_keep_their_sources_and_new_ones_have_none() -> None:
    from penstock.graph import sources

    model = optimize(boundary.preprocess(convolution(), "x:uint8,mean=1")).model
    assert {node.op_type: sources(node) for node in model.graph} == {"Cast": (), "Conv": ("n0",)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "can't be read, expected INPUT"),
        ("x:", "can't be read"),
        ("z:uint8", "no input 'z', the model has x"),
        ("x:int8", "'int8' is unknown"),
        ("x:uint8,float32", "type is given twice"),
        ("x:mean=1,mean=2", "mean is given twice"),
        ("x:mean", "'mean' is unknown"),
        ("x:mean=", "are no numbers"),
        ("x:mean=1/b", "are no numbers"),
        ("x:mean=nan", "are no numbers"),
        ("x:std=1e999", "are no numbers"),
        ("x:std=0", "std is 0"),
        ("x:mean=1/2", "mean has 2 numbers, 'x' 3 channels"),
        ("x:scale=2", "'scale=2' is unknown"),
    ],
)
def test_a_preprocessing_that_can_not_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        boundary.preprocess(convolution(), text)


@pytest.mark.parametrize(
    ("signature_text", "text", "words"),
    [
        ("(int64[N,3] x) => (int64[N,3] y)", "x:uint8", "is INT64, expected FP32"),
        ("(float[N,3] x) => (float[N,3] y)", "x:nhwc", "expected N,C,H,W"),
        ("(float[N,C] x) => (float[N,C] y)", "x:mean=1/2,std=1/2/3", "mean has 2 numbers, std 3"),
    ],
)
def test_an_input_that_can_not_be_preprocessed_is_refused(signature_text: str, text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        boundary.preprocess(graph(f"{signature_text} {{ y = Abs(x) }}"), text)


@pytest.mark.parametrize("opset", [11, 17, 18, 21])
@pytest.mark.parametrize(("axis", "place"), [(2, 2), (-1, 2), (1, 1)])
def test_a_reduction_gives_index_and_value(opset: int, axis: int, place: int) -> None:
    model = graph("(float[N,5,7] x) => (float[N,5,7] y, float[N,5,7] z) { z = Neg(x) y = Softmax(z) }", opset=opset)
    inside, found = boundary.reduce(model, f"y:argmax@{axis}", beside=False)
    assert found == Reduction("y", place, beside=False)
    rest = 7 if place == 1 else 5
    assert [str(spec) for spec in signature(inside)[1]] == [
        f"y_index INT64[-1, {rest}]",
        f"y_value FP32[-1, {rest}]",
        "z FP32[-1, 5, 7]",
    ]
    inputs = {"x": normal(3, 5, 7)}
    whole, got = run(model, inputs)["y"], run(optimize(inside).model, inputs)
    assert np.array_equal(got["y_index"], whole.argmax(place))
    assert np.array_equal(got["y_value"], whole.max(place))
    assert_same(inside, optimize(inside, shapes={"x": (3, 5, 7)}).model, inputs)


def test_a_reduction_beside_the_graph_leaves_it_alone() -> None:
    model = graph("(float[N,5] x) => (float[N,5] y) { y = Softmax(x) }")
    same, found = boundary.reduce(model, "y:argmax@1", beside=True)
    assert same is model
    assert found == Reduction("y", 1, beside=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("y", "can't be read, expected OUTPUT:argmax@AXIS"),
        ("y:argmax", "can't be read"),
        ("y:argmin@1", "can't be read"),
        ("y:argmax@", "can't be read"),
        ("y:argmax@one", "can't be read"),
        (":argmax@1", "can't be read"),
        ("z:argmax@1", "no output 'z', the model has y, i"),
        ("y:argmax@2", "has 2 dimensions, got axis 2"),
        ("y:argmax@-3", "has 2 dimensions, got axis -3"),
        ("i:argmax@0", "'i' is INT64, expected FP32"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_reduction_that_can_not_be_is_refused(text: str, words: str, beside: bool) -> None:
    model = graph("(float[N,5] x) => (float[N,5] y, int64[N,5] i) { y = Softmax(x) i = Cast<to=7>(x) }")
    with pytest.raises(InvalidArgument, match=words):
        boundary.reduce(model, text, beside=beside)
