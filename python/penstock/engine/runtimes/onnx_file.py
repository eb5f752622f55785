"""Looks into an ONNX file without loading it: names of its inputs and outputs, files it refers to, nodes kept in FP32.

ONNX may keep tensors in other files, named inside the model by whoever made it. `inspect` refuses names that would make
a library read anything but plain files beside the model, before any library sees it. It walks the few protobuf fields
that lead there (onnx.proto of the ONNX project gives the numbers) over a memory map, skipping weights, so that its cost
follows the number of nodes and not the size of the file.
"""

import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from penstock import limits
from penstock.engine.plan import WIDE_KEY
from penstock.errors import ModelLoadError

# Message -> field number -> message it holds. Fields left out hold no tensors and are skipped.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Input", 12: "Output", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA = 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VALUE_INFO_NAME = 1
_NODE_OUTPUT, _NODE_NAME, _NODE_METADATA = 2, 3, 9
# Where a protobuf length or varint field ends, by wire type; groups (3, 4) do not occur in ONNX.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What the walk found: names of the main graph's outputs in order, and the data files beside the model."""

    outputs: tuple[str, ...]
    external: frozenset[str]
    inputs: tuple[str, ...] = ()
    """In order, without those that have a value in the file."""

    wide: frozenset[str] = frozenset()
    """Nodes that are marked to stay in FP32: their names, and those of what they compute."""


class _DamagedError(Exception):
    """The bytes are no protobuf message."""


def inspect(path: Path) -> OnnxFile:
    """Walk the file; raises ModelLoadError when it is no ONNX model or refers to data outside its directory."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = _Walk(path, data)
            walk.message("Model", 0, len(data), 0)
    except (_DamagedError, ValueError) as error:  # an empty file can't be mapped: ValueError
        raise ModelLoadError(f"{path.name} is not an ONNX model, or it is cut: {error}") from None
    if not walk.graphs:
        raise ModelLoadError(f"{path.name} is not an ONNX model: it holds no graph")
    inputs = tuple(name for name in walk.inputs if name not in walk.weights)
    return OnnxFile(tuple(walk.outputs), frozenset(walk.external), inputs, frozenset(walk.wide))


class _Walk:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.inputs: list[str] = []
        self.weights: set[str] = set()
        self.outputs: list[str] = []
        self.external: set[str] = set()
        self.wide: set[str] = set()
        self.references = 0
        self.graphs = 0

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        if (
            depth > 4 * limits.ONNX_DEPTH
        ):  # graph, node, attribute, graph: a sub-graph is three levels, with one to spare
            raise ModelLoadError(f"{self.path.name}: graphs nest deeper than {limits.ONNX_DEPTH}")
        main = depth == 2  # and not a sub-graph
        if kind == "Tensor":
            if main:
                self.weights.update(self.names(start, end, _TENSOR_NAME))
            return self.tensor(start, end)
        if kind in ("Input", "Output"):
            if main:
                found = self.inputs if kind == "Input" else self.outputs
                found += self.names(start, end, _VALUE_INFO_NAME)
            return None
        if kind == "Graph":
            self.graphs += 1
        if kind == "Node":
            self.node(start, end)
        inner = _FIELDS[kind]
        for field, first, last in _fields(self.data, start, end):
            if field in inner:
                self.message(inner[field], first, last, depth + 1)
        return None

    def names(self, start: int, end: int, wanted: int) -> list[str]:
        return [_text(self.data, *span) for field, *span in _fields(self.data, start, end) if field == wanted]

    def node(self, start: int, end: int) -> None:
        names: list[tuple[int, int]] = []
        marked = False
        for field, first, last in _fields(self.data, start, end):
            if field in (_NODE_OUTPUT, _NODE_NAME):
                names.append((first, last))
            elif field == _NODE_METADATA:
                entry = {number: _text(self.data, a, b) for number, a, b in _fields(self.data, first, last)}
                marked |= (entry.get(_ENTRY_KEY), entry.get(_ENTRY_VALUE)) == (WIDE_KEY, "fp32")
        if marked:
            self.wide.update(name for span in names if (name := _text(self.data, *span)))

    def tensor(self, start: int, end: int) -> None:
        entries: list[tuple[str, str]] = []
        for field, first, last in _fields(self.data, start, end):
            if field == _TENSOR_EXTERNAL_DATA:
                entry = {number: _text(self.data, a, b) for number, a, b in _fields(self.data, first, last)}
                entries.append((entry.get(_ENTRY_KEY, ""), entry.get(_ENTRY_VALUE, "")))
        if not entries:
            return
        self.references += 1
        if self.references > limits.EXTERNAL_TENSORS:
            raise ModelLoadError(f"{self.path.name}: more than {limits.EXTERNAL_TENSORS} external tensors")
        locations = [value for key, value in entries if key == "location"]
        if len(locations) != 1:
            raise ModelLoadError(f"{self.path.name}: external data needs exactly one location, got {len(locations)}")
        size = self.beside(locations[0])
        offset = self.number(entries, "offset")
        if offset + self.number(entries, "length") > size:
            raise ModelLoadError(
                f"{self.path.name}: external data {locations[0]!r} has {size} bytes, the model asks for more"
            )

    def number(self, entries: list[tuple[str, str]], key: str) -> int:
        values = [value for name, value in entries if name == key]
        if not all(value.isascii() and value.isdigit() and len(value) <= 19 for value in values):
            raise ModelLoadError(f"{self.path.name}: external data {key} is {values[0]!r}, expected a size in bytes")
        return max(map(int, values), default=0)

    def beside(self, location: str) -> int:
        """Size of the file a location names, once it is certain that it is a plain file beside the model."""
        refused = f"{self.path.name}: external data {location!r} is refused:"
        parts = PurePosixPath(location.replace("\\", "/")).parts
        if not parts or "\0" in location or parts[0] == "/" or ".." in parts or ":" in parts[0]:
            raise ModelLoadError(f"{refused} expected a relative path beneath the model's directory")
        place = self.path.parent
        for part in parts:
            place = place / part
            try:
                status = os.lstat(place)
            except OSError:
                raise ModelLoadError(f"{self.path.name}: external data {location!r} does not exist") from None
            if stat.S_ISLNK(status.st_mode):
                raise ModelLoadError(f"{refused} it is a symbolic link; put the file itself beside the model")
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise ModelLoadError(f"{refused} expected a plain file with one name; copy it beside the model")
        self.external.add(location)
        return status.st_size


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Length-delimited fields of one message as (number, first byte, end); other fields are skipped."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _BYTES:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise _DamagedError(f"a field of {length} bytes at offset {at} passes the end")
            yield tag >> 3, at, at + length
            at += length
        else:
            raise _DamagedError(f"unknown wire type {kind} at offset {at}")
    if at != end:
        raise _DamagedError(f"a field passes the end at offset {end}")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:  # ten bytes of seven bits hold 64
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _DamagedError(f"a number at offset {at} does not end")


def _text(data: mmap.mmap, start: int, end: int) -> str:
    try:
        return data[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise _DamagedError(f"text at offset {start} is not UTF-8") from None
