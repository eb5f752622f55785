"""A model as steps for a GPU, in one file: the graph of every bucket, and the weights of all of them once.

The file is safetensors; the graphs are JSON (`engine.lowered`) in its metadata. What is read is believed in nothing:
graphs are validated, tensors fill the file from end to end, and every weight must be there with its shape and type.
Nothing is copied: weights are seen where the file's content lies. Written by build, read by the runtime `cuda`.
Imports no torch.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.engine.lowered import LoweredGraph, from_data, to_data
from penstock.engine.plan import Shapes
from penstock.errors import InvalidArgument, ModelLoadError

Array = NDArray[Any]
Weights = Mapping[str, Array]

_FORMAT: Final = "penstock-lowered-1"
_MOST_HEADER_BYTES: Final = 100 * 2**20  # of the format itself
_MOST_AXES: Final = 16
_LONGEST_AXIS: Final = 2**31 - 1
_PIECE: Final = 2**20  # bytes that are compared at once

# The file's name of a type -> ours, and NumPy's; that of bfloat16 is in a package of its own.
_TYPES: Final[Mapping[str, tuple[str, str]]] = {
    "BOOL": ("BOOL", "bool"),
    "I8": ("INT8", "int8"),
    "I16": ("INT16", "int16"),
    "I32": ("INT32", "int32"),
    "I64": ("INT64", "int64"),
    "U8": ("UINT8", "uint8"),
    "F8_E4M3": ("FP8", "float8_e4m3fn"),
    "F16": ("FP16", "float16"),
    "BF16": ("BF16", "bfloat16"),
    "F32": ("FP32", "float32"),
    "F64": ("FP64", "float64"),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The model at the shapes of one bucket."""

    shapes: Shapes
    graph: LoweredGraph
    stored: Mapping[str, str]
    """Weight -> its name in the file, where that is another: constants of the same name differ between buckets."""


@dataclass(frozen=True, slots=True)
class Form:
    prepared: tuple[Prepared, ...]
    weights: Weights

    def at(self, shapes: Shapes | None) -> tuple[Prepared, ...]:
        """The bucket of these shapes, all for None. Raises InvalidArgument where there is none."""
        if shapes is None:
            return self.prepared
        wanted = {name: tuple(shape) for name, shape in shapes.items()}
        found = tuple(each for each in self.prepared if dict(each.shapes) == wanted)
        if not found:
            raise InvalidArgument(f"shapes {wanted} are not prepared, expected one of {self._written()}")
        return found

    def _written(self) -> str:
        return "; ".join(str(dict(each.shapes)) for each in self.prepared)


# ---- writing ----


def write(path: Path, graphs: Iterable[tuple[Shapes, LoweredGraph, Weights]]) -> None:
    """Weights that buckets have in common are kept once, while the graphs are still being made.

    Raises OSError, InvalidArgument (a weight of a type that steps can't have).
    """
    kept = _Kept()
    entries = list(starmap(kept.entry, graphs))  # nothing holds a bucket's weights while the next is made
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, "graphs": json.dumps(entries)}}
    # Large types first, so that each number lies on a multiple of its size.
    arrays = sorted(kept.arrays.items(), key=lambda item: -item[1].itemsize)
    end = 0
    for place, array in arrays:
        begin, end = end, end + array.nbytes
        header[place] = {"dtype": _stored_type(array), "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, array in arrays:
            file.write(_raw(array).data)


class _Kept:
    """The weights of the buckets so far, each content once for each name."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        """By their names in the file."""

        self._places: dict[str, list[str]] = {}

    def entry(self, shapes: Shapes, graph: LoweredGraph, weights: Weights) -> dict[str, Any]:
        """What is written of a bucket, beside its weights."""
        places = {name: self._place(name, given) for name, given in weights.items()}
        stored = {name: place for name, place in places.items() if place != name}
        return {"shapes": dict(shapes), "graph": to_data(graph), "stored": stored}

    def _place(self, name: str, given: Array) -> str:
        array = np.asarray(given, order="C")
        places = self._places.setdefault(name, [])
        for place in places:
            if _same(self.arrays[place], array):
                return place
        place, number = name, 0
        while place in self.arrays or place == "__metadata__":
            number += 1
            place = f"{name}@{number}"
        self.arrays[place] = array
        places.append(place)
        return place


def _same(one: Array, other: Array) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    left, right = _raw(one), _raw(other)
    pieces = range(0, left.size, _PIECE)
    return one is other or all(np.array_equal(left[at : at + _PIECE], right[at : at + _PIECE]) for at in pieces)


def _raw(array: Array) -> NDArray[np.uint8]:
    """The same memory as bytes."""
    return array.reshape(-1).view(np.uint8)


def _stored_type(array: Array) -> str:
    for stored, (_, known) in _TYPES.items():
        if array.dtype.name == known and array.dtype.isnative:
            return stored
    raise InvalidArgument(
        f"a weight has type {array.dtype}, expected one of {', '.join(t for t, _ in _TYPES.values())}"
    )


# ---- reading ----


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An entry of the header."""

    name: str
    stored_type: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def on(self, body: memoryview) -> Array:
        known = _TYPES[self.stored_type][1]
        dtype = _dtype(known)
        size = math.prod(self.shape)
        if self.end - self.begin != size * dtype.itemsize:
            raise ValueError(f"tensor {self.name!r:.60} has {self.end - self.begin} bytes for shape {self.shape}")
        if not size:
            return np.empty(self.shape, dtype)
        array: Array = np.frombuffer(body, dtype, size, self.begin).reshape(self.shape)
        if known == "bool" and _raw(array).max() > 1:
            raise ValueError(f"tensor {self.name!r:.60} is neither true nor false")
        return array


def read(data: bytes | bytearray | memoryview, name: str) -> Form:
    """Of a file's content, which the weights keep; `name` is for messages. Raises ModelLoadError."""
    try:
        metadata, weights = _opened(memoryview(data))
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"format {metadata.get('format')!r:.60}, this version reads {_FORMAT!r}")
        entries = json.loads(metadata["graphs"], object_pairs_hook=_object)
        if not isinstance(entries, list) or not entries:
            raise ValueError("no graphs are inside")
        prepared = tuple(map(_prepared, entries))
        _expect_one_model(prepared)
        for each in prepared:
            _expect_weights(each, weights)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        InvalidArgument,
    ) as error:
        raise ModelLoadError(f"{name}: its steps can't be read ({error!s:.300}); build it again") from None
    return Form(prepared, weights)


def _opened(data: memoryview) -> tuple[Mapping[str, str], dict[str, Array]]:
    """Eight bytes with the header's length, the header in JSON, and tensors without gaps: metadata and tensors."""
    length = int.from_bytes(data[:8], "little")
    if length > min(_MOST_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(str(data[8 : 8 + length], "utf-8"), object_pairs_hook=_object)
    if not isinstance(header, dict):
        raise TypeError("the header is no object")
    metadata = header.pop("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise TypeError("metadata are no texts")
    body, tensors, end = data[8 + length :], [_tensor(name, entry) for name, entry in header.items()], 0
    for tensor in sorted(tensors, key=lambda each: (each.begin, each.end)):
        if tensor.begin != end:
            raise ValueError(f"tensor {tensor.name!r:.60} begins at {tensor.begin}, the one before ends at {end}")
        end = tensor.end
    if end != len(body):
        raise ValueError(f"tensors take {end} bytes of {len(body)}")
    return metadata, {tensor.name: tensor.on(body) for tensor in tensors}


def _tensor(name: str, entry: Mapping[str, Any]) -> _Tensor:
    if entry.keys() != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in _TYPES:
        raise ValueError(f"tensor {name!r:.60} is of a kind that forms don't have")
    begin, end = _sizes(entry["data_offsets"], 2**63)
    if begin > end:
        raise ValueError(f"tensor {name!r:.60} ends before it begins")
    return _Tensor(name, entry["dtype"], _sizes(entry["shape"], _LONGEST_AXIS), begin, end)


def _sizes(data: Any, most: int) -> tuple[int, ...]:
    if not isinstance(data, list) or len(data) > _MOST_AXES:
        raise TypeError(f"expected sizes, got {data!r:.60}")
    for each in data:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each <= most:
            raise ValueError(f"expected a size, got {each!r:.60}")
    return tuple(data)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _dtype(name: str) -> "np.dtype[Any]":
    if name not in ("bfloat16", "float8_e4m3fn"):
        return np.dtype(name)
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def _prepared(entry: Mapping[str, Any]) -> Prepared:
    shapes = {name: _sizes(shape, _LONGEST_AXIS) for name, shape in entry["shapes"].items()}
    graph = from_data(entry["graph"])
    if shapes != {each.name: each.shape for each in graph.inputs}:
        raise ValueError("a graph has other inputs than its bucket")
    if any(0 in shape for shape in shapes.values()):
        raise ValueError(f"a bucket of nothing: {shapes}")
    if any(step.implementation for step in graph.steps):
        raise ValueError("a step names its implementation, which is for programs to choose")
    stored = entry["stored"]
    if not all(isinstance(place, str) for place in stored.values()):
        raise TypeError("a weight's name in the file is no text")
    return Prepared(shapes, graph, stored)


def _expect_one_model(prepared: Sequence[Prepared]) -> None:
    """Buckets differ in sizes, and each is there once."""
    signatures = [
        (
            [(each.name, each.datatype, len(each.shape)) for each in graph.inputs],
            [(each.name, graph.stored(each.value).datatype, len(each.shape)) for each in graph.outputs],
        )
        for graph in (each.graph for each in prepared)
    ]
    if not signatures[0][1] or any(each != signatures[0] for each in signatures):
        raise ValueError("buckets have other inputs or outputs than the first, or none")
    if len({tuple(sorted(each.shapes.items())) for each in prepared}) != len(prepared):
        raise ValueError("a bucket is there twice")


def _expect_weights(prepared: Prepared, weights: Weights) -> None:
    for name, expected in prepared.graph.weights.items():
        array = weights[prepared.stored.get(name, name)]
        found = _TYPES[_stored_type(array)][0]
        if array.shape != expected.shape or found != expected.datatype:
            raise ValueError(
                f"weight {name!r:.60} is {found} {list(array.shape)}, the steps want {expected.datatype} "
                f"{list(expected.shape)}"
            )
