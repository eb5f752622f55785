"""Tensor types, their names in each of the three worlds, and annotations."""

import subprocess
import sys
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import pytest

import penstock as ps
from penstock import tensors
from penstock.tensors import TensorSpec, TensorType

ALL = {
    "F64": ("FP64", "float64", "TYPE_FP64"),
    "F32": ("FP32", "float32", "TYPE_FP32"),
    "F16": ("FP16", "float16", "TYPE_FP16"),
    "BF16": ("BF16", "uint16", "TYPE_BF16"),
    "I64": ("INT64", "int64", "TYPE_INT64"),
    "I32": ("INT32", "int32", "TYPE_INT32"),
    "I16": ("INT16", "int16", "TYPE_INT16"),
    "I8": ("INT8", "int8", "TYPE_INT8"),
    "U64": ("UINT64", "uint64", "TYPE_UINT64"),
    "U32": ("UINT32", "uint32", "TYPE_UINT32"),
    "U16": ("UINT16", "uint16", "TYPE_UINT16"),
    "U8": ("UINT8", "uint8", "TYPE_UINT8"),
    "Bool": ("BOOL", "bool", "TYPE_BOOL"),
    "Bytes": ("BYTES", "object", "TYPE_STRING"),
}


@pytest.mark.parametrize(("name", "expected"), ALL.items())
def test_each_type_has_its_v2_name_its_numpy_dtype_and_its_triton_name(
    name: str, expected: tuple[str, str, str]
) -> None:
    kind = getattr(ps, name)
    assert (kind.datatype, kind.dtype.name, tensors.to_triton(kind.datatype)) == expected
    assert tensors.from_triton(expected[2]) == expected[0]
    if name != "BF16":
        assert tensors.datatype_of(kind.dtype) == kind.datatype


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (ps.F32, ()),
        (ps.F32[()], ()),
        (ps.F32[16], (16,)),
        (ps.F32[3, -1, -1], (3, -1, -1)),
        (ps.F32[np.int64(4),], (4,)),  # type: ignore[index]
        (ps.F32[0], (0,)),
    ],
)
def test_subscripting_gives_the_shape_of_one_row(made: TensorType, shape: tuple[int, ...]) -> None:
    assert made == TensorType("FP32", shape)


@pytest.mark.parametrize("wrong", [1.5, "3", None, True, (3, "n"), slice(3)])
def test_a_shape_of_anything_but_integers_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected integers"):
        ps.F32[wrong]


def test_sizes_below_minus_one_are_refused() -> None:
    with pytest.raises(ValueError, match="-2 is no dimension"):
        ps.I64[3, -2]


def test_a_type_is_subscripted_once() -> None:
    with pytest.raises(TypeError, match="once"):
        ps.F32[3][3]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (ps.F32[16], ps.F32[16]),
        (Annotated[np.ndarray, ps.F32[16]], ps.F32[16]),
        (Annotated[np.ndarray, "a note", ps.U8[2]], ps.U8[2]),
        (Annotated[np.ndarray, "a note"], None),
        (np.ndarray, None),
        (int, None),
        ("F32[16]", None),
    ],
)
def test_annotations_mean_a_tensor_type_or_nothing(annotation: object, expected: TensorType | None) -> None:
    assert tensors.tensor_type(annotation) == expected


def test_two_tensor_types_in_one_annotation_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="more than one"):
        tensors.tensor_type(Annotated[np.ndarray, ps.F32[1], ps.F32[2]])


def test_bfloat16_is_recognised_and_its_bits_survive_the_journey() -> None:
    real = np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16)
    assert tensors.datatype_of(real.dtype) == "BF16"
    assert (real.view(np.uint16).view(tensors.bfloat16()) == real).all()


@pytest.mark.parametrize("dtype", ["S3", "U3", "O"])
def test_text_and_byte_arrays_are_bytes(dtype: str) -> None:
    assert tensors.datatype_of(np.dtype(dtype)) == "BYTES"


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "longdouble"])
def test_dtypes_without_a_v2_name_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="no v2 datatype"):
        tensors.datatype_of(np.dtype(dtype))


@pytest.mark.parametrize(
    ("shape", "accepted"), [((2, 3), True), ((7, 3), True), ((2, 4), False), ((2,), False), ((2, 3, 1), False)]
)
def test_a_spec_accepts_shapes_that_fit(shape: tuple[int, ...], accepted: bool) -> None:
    assert TensorSpec("x", "FP32", (-1, 3)).accepts(shape) is accepted


def test_importing_penstock_imports_no_framework() -> None:
    heavy = ["onnxruntime", "openvino", "torch", "google.protobuf", "ml_dtypes", "pydantic", "typer"]
    code = f"import sys, penstock; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_public_names_are_pinned() -> None:
    types = set(ALL)
    assert set(ps.__all__) == types | {
        "Cosine",
        "DynamicBatching",
        "Engine",
        "Metric",
        "ModelFunction",
        "PenstockError",
        "Pipeline",
        "QueuePolicy",
        "Server",
        "TensorType",
        "build",
        "cpu",
        "custom_op",
        "gather",
        "load",
        "model",
        "pipeline",
        "use",
    }
    assert callable(ps.load)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        ps.nothing_like_it  # noqa: B018
