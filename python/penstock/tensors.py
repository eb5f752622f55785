"""Element types, tensor types and tensor signatures: the nouns every Python module shares.

`F32[16]` is a tensor type: an element type and the shape of one row, without the batch dimension; -1 is any size.
A bare `F32` is the same as `F32[()]`: one scalar per row. Names are those of the v2 protocol (`FP32`, `BYTES`);
`to_triton` and `from_triton` translate to the `TYPE_*` names of config.pbtxt.

BF16 travels as `uint16` arrays, since NumPy has no such type: `ml_dtypes.bfloat16` arrays are recognised and
viewed, and nothing here imports ml_dtypes unless asked. BYTES elements are Python `bytes` in an object array.
Imports the standard library and NumPy only, and NumPy when the first dtype is asked for: it takes most of the time
that `import penstock` would. Anyone may import this.
"""

import operator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin

if TYPE_CHECKING:
    import numpy as np

# v2 name, NumPy dtype it travels as, Triton's name in config.pbtxt.
_TABLE: Final[tuple[tuple[str, str, str], ...]] = (
    ("BOOL", "bool", "TYPE_BOOL"),
    ("UINT8", "uint8", "TYPE_UINT8"),
    ("UINT16", "uint16", "TYPE_UINT16"),
    ("UINT32", "uint32", "TYPE_UINT32"),
    ("UINT64", "uint64", "TYPE_UINT64"),
    ("INT8", "int8", "TYPE_INT8"),
    ("INT16", "int16", "TYPE_INT16"),
    ("INT32", "int32", "TYPE_INT32"),
    ("INT64", "int64", "TYPE_INT64"),
    ("FP16", "float16", "TYPE_FP16"),
    ("BF16", "uint16", "TYPE_BF16"),
    ("FP32", "float32", "TYPE_FP32"),
    ("FP64", "float64", "TYPE_FP64"),
    ("BYTES", "object", "TYPE_STRING"),
)
DATATYPES: Final[tuple[str, ...]] = tuple(name for name, _, _ in _TABLE)
_NUMPY: Final[dict[str, str]] = {name: dtype for name, dtype, _ in _TABLE}
_TRITON: Final[dict[str, str]] = {name: triton for name, _, triton in _TABLE}
_FROM_TRITON: Final[dict[str, str]] = {triton: name for name, _, triton in _TABLE}
_FROM_NUMPY: Final[dict[str, str]] = {dtype: name for name, dtype, _ in _TABLE if name != "BF16"} | {"bfloat16": "BF16"}


@cache
def numpy_dtype(datatype: str) -> "np.dtype[Any]":
    """The dtype that arrays of a v2 datatype have inside Penstock: BF16 is uint16, BYTES is object."""
    import numpy as np

    return np.dtype(_NUMPY[_known(datatype)])


def _known(datatype: str) -> str:
    if datatype not in _NUMPY:
        raise ValueError(f"unknown datatype {datatype!r}, expected one of {', '.join(DATATYPES)}")
    return datatype


def datatype_of(dtype: "np.dtype[Any]") -> str:
    """The v2 datatype of an array's dtype; NumPy's own byte and text strings count as BYTES."""
    if dtype.kind in "SU":
        return "BYTES"
    name = _FROM_NUMPY.get(dtype.name)
    if name is None:
        raise ValueError(f"no v2 datatype for arrays of {dtype.name}, expected one of {', '.join(_FROM_NUMPY)}")
    return name


def to_triton(datatype: str) -> str:
    """`FP32` -> `TYPE_FP32`; BYTES is `TYPE_STRING`."""
    return _TRITON[_known(datatype)]


def from_triton(name: str) -> str:
    """`TYPE_FP32` -> `FP32`."""
    try:
        return _FROM_TRITON[name]
    except KeyError:
        raise ValueError(f"unknown data_type {name!r}, expected one of {', '.join(_FROM_TRITON)}") from None


def bfloat16() -> "np.dtype[Any]":
    """The real bfloat16 dtype: `array.view(bfloat16())` makes a travelling BF16 array computable."""
    import ml_dtypes
    import numpy as np

    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def cut_to_bfloat16(floats: "np.ndarray[Any, np.dtype[np.float32]]") -> "np.ndarray[Any, np.dtype[np.uint16]]":
    """FP32 as BF16 that travels: the upper halves, not rounded."""
    import numpy as np

    return (floats.view(np.uint32) >> 16).astype(np.uint16)


@dataclass(frozen=True, slots=True)
class TensorType:
    """An element type and the shape of one row. Made by subscripting: `F32[3, -1]`, `I64[()]`."""

    datatype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _known(self.datatype)
        for size in self.shape:
            if size < -1:
                raise ValueError(f"{self}: {size} is no dimension, expected -1 (any size) or a size from 0")

    def __getitem__(self, shape: int | tuple[int, ...]) -> "TensorType":
        if self.shape:
            raise TypeError(f"{self} has its shape already, subscript the element type once")
        sizes = shape if isinstance(shape, tuple) else (shape,)
        for size in sizes:
            if isinstance(size, bool) or not hasattr(size, "__index__"):
                raise TypeError(f"{self.datatype}[{size!r}]: expected integers, -1 for a dimension of any size")
        return TensorType(self.datatype, tuple(operator.index(size) for size in sizes))

    def __str__(self) -> str:
        return f"{self.datatype}[{', '.join(map(str, self.shape))}]"

    @property
    def dtype(self) -> "np.dtype[Any]":
        return numpy_dtype(self.datatype)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output, with the full shape its owner sees: the batch dimension is included.

    `axes` keeps the symbolic names a model file gives its free dimensions (`None` where it gives none); it is empty
    when nothing is known and takes no part in comparisons.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    axes: tuple[str | None, ...] = field(default=(), compare=False)

    @property
    def dtype(self) -> "np.dtype[Any]":
        return numpy_dtype(self.datatype)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape fits."""
        return len(shape) == len(self.shape) and all(
            expected in (-1, size) for expected, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}[{', '.join(map(str, self.shape))}]"


def tensor_type(annotation: object) -> TensorType | None:
    """The tensor type an annotation means: a TensorType, or `Annotated[..., TensorType]`; None for anything else."""
    if isinstance(annotation, TensorType):
        return annotation
    if get_origin(annotation) is Annotated:
        found = [item for item in get_args(annotation)[1:] if isinstance(item, TensorType)]
        if len(found) > 1:
            raise TypeError(f"more than one tensor type in {annotation!r}: {', '.join(map(str, found))}")
        return found[0] if found else None
    return None


F64: Final = TensorType("FP64")
F32: Final = TensorType("FP32")
F16: Final = TensorType("FP16")
BF16: Final = TensorType("BF16")
I64: Final = TensorType("INT64")
I32: Final = TensorType("INT32")
I16: Final = TensorType("INT16")
I8: Final = TensorType("INT8")
U64: Final = TensorType("UINT64")
U32: Final = TensorType("UINT32")
U16: Final = TensorType("UINT16")
U8: Final = TensorType("UINT8")
Bool: Final = TensorType("BOOL")
Bytes: Final = TensorType("BYTES")
