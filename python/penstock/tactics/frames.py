"""Frames: what builder and child processes say to each other, as bytes. A JSON head and raw tensors behind it.

    4 bytes   length of the head, little-endian
    head      {"kind": ..., "fields": {...}, "tensors": [{"name", "datatype", "shape", "bytes"}, ...]}
    tensors   one after the other, C order, little-endian; BYTES elements each with a 4-byte length before it

Nothing in a frame can be executed, and a damaged one raises FrameError. Does no I/O: `encode` gives bytes to write,
`Decoder` takes bytes as they come. Called by `child` and `worker`.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.tensors import datatype_of, numpy_dtype

Array = NDArray[Any]

_LENGTH: Final = struct.Struct("<I")

# Heads hold paths, messages and regions; one of a graph with 100,000 nodes takes some 20 MB.
MAX_HEAD_BYTES: Final = 64 * 2**20
# Beyond any tensor of a model that runs on one machine: a length that is damaged is seen before memory is asked for it.
MAX_TENSORS_BYTES: Final = 16 * 2**30


class FrameError(Exception):
    """The bytes are no frame: somebody else wrote into the pipe."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: a kind, small values, and tensors."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)


def encode(frame: Frame) -> list[bytes | memoryview]:
    """The frame as buffers to be written in order; arrays are not copied unless they have to be."""
    described: list[dict[str, Any]] = []
    bodies: list[bytes | memoryview] = []
    for name, array in frame.tensors.items():
        datatype = datatype_of(array.dtype)
        body = _pack_strings(array) if datatype == "BYTES" else _raw(array)
        size = len(body) if isinstance(body, bytes) else body.nbytes
        described.append({"name": name, "datatype": datatype, "shape": list(array.shape), "bytes": size})
        bodies.append(body)
    head = json.dumps({"kind": frame.kind, "fields": dict(frame.fields), "tensors": described}).encode()
    return [_LENGTH.pack(len(head)) + head, *bodies]


def _raw(array: Array) -> bytes | memoryview:
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    whole = np.ascontiguousarray(array)
    return whole.reshape(-1).view(np.uint8).data if whole.size else b""


def _pack_strings(array: Array) -> bytes:
    parts: list[bytes] = []
    for item in array.reshape(-1).tolist():
        text = item if isinstance(item, bytes) else str(item).encode()
        parts += [_LENGTH.pack(len(text)), text]
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


class Decoder:
    """Collects the bytes of one frame after the other."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[str, Mapping[str, Any], tuple[_Part, ...]] | None = None
        self._needed = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Frame | None:
        """The next whole frame, or None until more bytes came; raises FrameError for what is no frame."""
        if self._head is None:
            if len(self._buffer) < _LENGTH.size:
                return None
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > MAX_HEAD_BYTES:
                raise FrameError(f"a head of {size} bytes, expected at most {MAX_HEAD_BYTES}")
            if len(self._buffer) < _LENGTH.size + size:
                return None
            self._head = _head(bytes(self._buffer[_LENGTH.size : _LENGTH.size + size]))
            del self._buffer[: _LENGTH.size + size]
            self._needed = sum(part.size for part in self._head[2])
        if len(self._buffer) < self._needed:
            return None
        kind, fields, parts = self._head
        tensors: dict[str, Array] = {}
        at = 0
        for part in parts:
            tensors[part.name] = _array(part, self._buffer[at : at + part.size])
            at += part.size
        del self._buffer[:at]
        self._head = None
        return Frame(kind, fields, tensors)


def _head(data: bytes) -> tuple[str, Mapping[str, Any], tuple[_Part, ...]]:
    try:
        head = json.loads(data)
        parts = tuple(
            _Part(str(each["name"]), str(each["datatype"]), tuple(map(int, each["shape"])), int(each["bytes"]))
            for each in head["tensors"]
        )
        kind, fields = str(head["kind"]), dict(head["fields"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FrameError(f"a head that can't be read: {error!r}") from None
    for part in parts:
        if part.size < 0 or min(part.shape, default=0) < 0:
            raise FrameError(f"tensor {part.name!r} of {part.size} bytes and shape {list(part.shape)}")
    if sum(part.size for part in parts) > MAX_TENSORS_BYTES:
        raise FrameError(f"tensors of more than {MAX_TENSORS_BYTES} bytes")
    return kind, fields, parts


def _array(part: _Part, data: bytearray) -> Array:
    try:
        if part.datatype == "BYTES":
            return _unpack_strings(part, data)
        dtype = numpy_dtype(part.datatype)
        if prod(part.shape) * dtype.itemsize != part.size:
            raise FrameError(f"tensor {part.name!r}: {part.size} bytes for shape {list(part.shape)}")
        return np.frombuffer(data, dtype).reshape(part.shape)
    except ValueError as error:
        raise FrameError(f"tensor {part.name!r} can't be read: {error}") from None


def _unpack_strings(part: _Part, data: bytearray) -> Array:
    flat: list[bytes] = []
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise FrameError(f"tensor {part.name!r}: a length is cut")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > len(data):
            raise FrameError(f"tensor {part.name!r}: an element of {size} bytes is cut")
        flat.append(bytes(data[at : at + size]))
        at += size
    if len(flat) != prod(part.shape):
        raise FrameError(f"tensor {part.name!r}: {len(flat)} elements for shape {list(part.shape)}")
    made = np.empty(len(flat), object)
    made[:] = flat
    return made.reshape(part.shape)
