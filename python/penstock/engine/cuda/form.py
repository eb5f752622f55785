"""A model as steps for a GPU, in one file: the graph of every bucket, and the weights of all of them once.

The file is safetensors; the graphs are JSON (`engine.lowered`) in its metadata. What is read is believed in nothing:
graphs are validated, and every weight must be there with its shape and type. Written by build, read by the runtime
`cuda`. Imports no torch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.engine.lowered import LoweredGraph, from_json, to_json
from penstock.engine.plan import Shapes
from penstock.errors import InvalidArgument, ModelLoadError

Array = NDArray[Any]
Weights = Mapping[str, Array]

_FORMAT: Final = "penstock-lowered-1"
_MOST_HEADER_BYTES: Final = 100 * 2**20  # of the format itself


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


def write(path: Path, graphs: Iterable[tuple[Shapes, LoweredGraph, Weights]]) -> None:
    """Raises OSError."""
    from safetensors.numpy import save_file

    arrays: dict[str, Array] = {}
    entries = []
    for number, (shapes, graph, weights) in enumerate(graphs):
        stored = {}
        for name, given in weights.items():
            array = np.ascontiguousarray(given)
            known = arrays.get(name)
            if known is not None and not _same(known, array):
                stored[name] = f"{name}@{number}"
            arrays[stored.get(name, name)] = array
        entries.append({"shapes": dict(shapes), "graph": json.loads(to_json(graph)), "stored": stored})
    save_file(arrays, path, metadata={"format": _FORMAT, "graphs": json.dumps(entries)})


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def read(data: bytes | bytearray | memoryview, name: str) -> Form:
    """Of a file's content; `name` is for messages. Raises ModelLoadError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        metadata = _metadata(data)
        if metadata.get("format") != _FORMAT:
            raise ModelLoadError(f"{name}: format {metadata.get('format')!r:.60}, this version reads {_FORMAT!r}")
        weights = load(bytes(data))
        prepared = tuple(_prepared(each) for each in json.loads(metadata["graphs"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, SafetensorError, InvalidArgument) as error:
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(f"{name}: its steps can't be read ({error!s:.300}); build it again") from None
    for each in prepared:
        for weight, expected in each.graph.weights.items():
            array = weights.get(each.stored.get(weight, weight))
            if array is None or array.shape != expected.shape:
                raise ModelLoadError(f"{name}: weight {weight!r:.100} is not inside as the steps want it")
    return Form(prepared, weights)


def _metadata(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Of the header: eight bytes with its length, and JSON."""
    length = int.from_bytes(data[:8], "little")
    if length > min(_MOST_HEADER_BYTES, len(data)):
        raise ValueError(f"a header of {length} bytes")
    found = json.loads(bytes(data[8 : 8 + length]))["__metadata__"]
    if not isinstance(found, dict):
        raise ValueError("metadata are no object")
    return found


def _prepared(entry: Mapping[str, Any]) -> Prepared:
    shapes = {str(name): tuple(int(size) for size in shape) for name, shape in entry["shapes"].items()}
    graph = from_json(json.dumps(entry["graph"]))
    if shapes != {each.name: each.shape for each in graph.inputs}:
        raise ValueError("a graph has other inputs than its bucket")
    return Prepared(shapes, graph, {str(name): str(place) for name, place in entry["stored"].items()})
