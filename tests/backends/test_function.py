"""`@ps.model`: signatures from annotations or by hand, clear refusals at decoration, and what an instance does."""

# mypy: disable-error-code="valid-type,no-any-return,index,unused-ignore"

from collections.abc import Callable
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import pytest

import penstock as ps
from penstock.backends.function import FunctionBackend
from penstock.errors import ExecutionError, InvalidArgument
from penstock.tensors import TensorSpec


def run(model: ps.ModelFunction, **inputs: Any) -> Any:
    return FunctionBackend(model).instance(0, 1, None).execute(inputs)


def test_a_model_gets_its_signature_from_annotations_and_outputs() -> None:
    @ps.model(name="double", max_batch_size=8, instances=2, outputs={"y": ps.F32[16]})
    def twice(x: ps.F32[16]) -> Any:  # type: ignore[valid-type]
        """Twice x."""
        return x * 2

    assert (twice.name, twice.max_batch_size, twice.instances) == ("double", 8, 2)
    assert twice.inputs == (TensorSpec("x", "FP32", (-1, 16)),)
    assert twice.outputs == (TensorSpec("y", "FP32", (-1, 16)),)
    assert twice.__doc__ == "Twice x."
    assert twice(3) == 6
    x = np.ones((2, 16), np.float32)
    np.testing.assert_array_equal(run(twice, x=x)["y"], x * 2)


def test_annotated_arrays_and_the_return_annotation_serve_as_signature() -> None:
    @ps.model
    def length(
        text: Annotated[np.ndarray, ps.Bytes], scale: Annotated[np.ndarray, ps.F32[()]]
    ) -> Annotated[np.ndarray, ps.I64[2, -1]]:
        raise NotImplementedError

    assert length.name == "length"
    assert length.inputs == (TensorSpec("text", "BYTES", (-1,)), TensorSpec("scale", "FP32", (-1,)))
    assert length.outputs == (TensorSpec("output", "INT64", (-1, 2, -1)),)


def test_annotations_may_be_text() -> None:
    def made(x: "ps.F32[3]") -> "ps.F32[3]":
        return x

    assert ps.model(made).inputs == (TensorSpec("x", "FP32", (-1, 3)),)


def test_without_a_batch_dimension_shapes_are_as_declared() -> None:
    made = ps.model(name="m", max_batch_size=0, inputs={"x": ps.F32[3]}, outputs={"y": ps.F32})(lambda x: x.sum())
    assert made.inputs[0].shape == (3,)
    assert made.outputs[0].shape == ()


def test_an_argument_with_a_default_is_an_optional_input() -> None:
    def add(x: ps.F32[2], bias: ps.F32[2] = None) -> ps.F32[2]:  # type: ignore[valid-type,assignment]
        return x if bias is None else x + bias

    made = ps.model(add)
    assert [spec.optional for spec in made.inputs] == [False, True]
    x = np.ones((1, 2), np.float32)
    assert run(made, x=x)["output"] is x
    assert run(made, x=x, bias=x)["output"].tolist() == [[2, 2]]


def test_declared_inputs_may_go_to_keyword_arguments() -> None:
    made = ps.model(name="m", inputs={"a": ps.F32[1], "b": ps.I64[1]}, outputs={"y": ps.F32[1]})(
        lambda **arrays: arrays["a"]
    )
    assert [spec.name for spec in made.inputs] == ["a", "b"]


def declared(x: Any) -> Any:
    return x


def undeclared_return(x: ps.F32[1]):  # type: ignore
    return x


def unannotated(x, y: ps.F32[1]) -> ps.F32[1]:  # type: ignore
    return x


def plain_array(x: np.ndarray) -> ps.F32[1]:  # type: ignore
    return x


def no_arguments() -> ps.F32[1]:  # type: ignore
    return np.ones((1, 1))


def several(*x: ps.F32[1]) -> ps.F32[1]:  # type: ignore
    return x


def positional(x: ps.F32[1], /) -> ps.F32[1]:  # type: ignore
    return x


def unknown_name(x: "Missing[1]") -> ps.F32[1]:  # type: ignore  # noqa: F821
    return x


async def coroutine(x: ps.F32[1]) -> ps.F32[1]:  # type: ignore
    return x


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (unannotated, {}, r"unannotated: argument 'x' needs a tensor type such as x: ps\.F32\[16\], or inputs="),
        (plain_array, {}, "argument 'x' needs a tensor type"),
        (undeclared_return, {}, "declare what it returns"),
        (no_arguments, {}, "has no inputs"),
        (several, {}, "inputs are passed by name"),
        (positional, {}, "inputs are passed by name"),
        (unknown_name, {}, "names something unknown"),
        (coroutine, {}, "async"),
        (lambda x: x, {"inputs": {"x": ps.F32[1]}, "outputs": {"y": ps.F32[1]}}, "pass name="),
        (declared, {"inputs": {"z": ps.F32[1]}, "outputs": {"y": ps.F32[1]}}, "'x' is not in inputs="),
        (declared, {"inputs": {"x": ps.F32[1], "z": ps.F32[1]}, "outputs": {"y": ps.F32[1]}}, "inputs= names z"),
        (declared, {"inputs": {"x": "FP32"}, "outputs": {"y": ps.F32[1]}}, "'x' is declared as 'FP32'"),
        (declared, {"inputs": {"x": ps.F32[1]}, "outputs": {}}, "at least one output"),
        (declared, {"inputs": {"x": ps.F32[1]}, "outputs": {"y": 3}}, "'y' is declared as 3"),
        (undeclared_return, {"outputs": {"y": ps.F32[1]}, "max_batch_size": -1}, "max_batch_size=-1"),
        (undeclared_return, {"outputs": {"y": ps.F32[1]}, "max_batch_size": 1.5}, r"max_batch_size=1\.5"),
        (undeclared_return, {"outputs": {"y": ps.F32[1]}, "instances": 0}, "instances=0"),
        (undeclared_return, {"outputs": {"y": ps.F32[1]}, "instances": True}, "instances=True"),
    ],
)
def test_a_signature_that_cannot_be_served_is_a_type_error_at_decoration(
    function: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        ps.model(**settings)(function)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "ä", "x" * 256, "a\n"])
def test_names_that_are_no_model_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="is not allowed"):
        ps.model(name=name, outputs={"y": ps.F32[1]})(undeclared_return)


def test_several_outputs_come_as_a_dict_and_anything_else_is_an_error() -> None:
    outputs = {"a": ps.F32[1], "b": ps.F32[1]}
    made = ps.model(name="m", inputs={"x": ps.F32[1]}, outputs=outputs)(lambda x: {"a": x, "b": x})
    x = np.ones((1, 1), np.float32)
    assert set(run(made, x=x)) == {"a", "b"}
    wrong = ps.model(name="pair", inputs={"x": ps.F32[1]}, outputs=outputs)(lambda x: (x, x))
    with pytest.raises(ExecutionError, match="model 'pair' returned tuple, expected a dict with a, b"):
        run(wrong, x=x)


def test_bfloat16_answers_leave_as_the_words_they_travel_as() -> None:
    made = ps.model(name="m", inputs={"x": ps.F32[2]}, outputs={"y": ps.BF16[2]})(
        lambda x: x.astype(ml_dtypes.bfloat16)
    )
    answer = run(made, x=np.array([[1.0, -2.0]], np.float32))["y"]
    assert answer.dtype == np.uint16
    assert answer.tolist() == [[0x3F80, 0xC000]]
