"""A graph that is cut around custom operators, as data: the order of its parts, and what goes from one to the next.

It lies beside the form's own file: `FORM.parts.json`, the parts as ONNX (`FORM.part0.onnx`, ...), and constants that
custom operators read (`FORM.constants.npz`). Written by build, run by `chained`; an engine keeps all of them, so
that it can be compiled again. Reading trusts nothing, as in `plan_json`.
"""

import base64
import binascii
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.engine.custom import OpName
from penstock.engine.plan_json import Reader, spec_from_json, spec_to_json
from penstock.errors import ModelLoadError
from penstock.tensors import TensorSpec, bfloat16

Array = NDArray[Any]
Attribute = int | float | str | list[int] | list[float] | list[str] | Array

SUFFIX: Final = ".parts.json"
CONSTANTS: Final = ".constants.npz"

_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the graph that a library runs."""

    name: str
    """`part0`: its file is `FORM.part0.onnx`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A node that a Python function runs."""

    node: str
    operator: OpName
    inputs: tuple[TensorSpec | None, ...]
    """None for one that is left out."""

    outputs: tuple[TensorSpec | None, ...]
    attributes: tuple[tuple[str, Attribute], ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """The whole graph, in the order in which it is run."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Part | Call, ...]
    constants: tuple[str, ...] = ()
    """Tensors that calls read, and that no part makes; in the order of the constants file."""

    @property
    def operators(self) -> tuple[OpName, ...]:
        return tuple(dict.fromkeys(step.operator for step in self.steps if isinstance(step, Call)))


def beside(path: Path) -> Path | None:
    """Where the parts of a form's file are described; None when it is not cut."""
    place = path.with_name(path.stem + SUFFIX)
    return place if place.is_file() else None


def part_path(path: Path, part: str) -> Path:
    """The file of one part of a form."""
    return path.with_name(f"{path.stem}.{part}.onnx")


def constants_path(path: Path) -> Path:
    return path.with_name(path.stem + CONSTANTS)


def files(path: Path) -> dict[str, Path]:
    """What lies beside a form that is cut, but for the ONNX files: by the ending of its name."""
    found = {SUFFIX: path.with_name(path.stem + SUFFIX), CONSTANTS: constants_path(path)}
    return {suffix: place for suffix, place in found.items() if place.is_file()}


def models(path: Path) -> dict[str, Path]:
    """The parts of a form's file by name; none where it is not cut. Raises ModelLoadError."""
    if beside(path) is None:
        return {}
    return {step.name: part_path(path, step.name) for step in read(path).steps if isinstance(step, Part)}


def read(path: Path) -> Chain:
    """The description of a form's parts. Raises ModelLoadError."""
    return from_bytes(path.with_name(path.stem + SUFFIX).read_bytes(), path.name)


def to_bytes(chain: Chain) -> bytes:
    data = {
        "format": _FORMAT,
        "inputs": [spec_to_json(each) for each in chain.inputs],
        "outputs": [spec_to_json(each) for each in chain.outputs],
        "constants": list(chain.constants),
        "steps": [_step_to_json(each) for each in chain.steps],
    }
    return json.dumps(data, indent=1, allow_nan=False).encode()


def from_bytes(data: bytes, name: str) -> Chain:
    """Raises ModelLoadError for anything that `to_bytes` can't have written."""
    try:
        top = Reader(json.loads(data), "parts")
        if top.integer("format") != _FORMAT:
            raise ModelLoadError(f"parts: format {top.integer('format')}, expected {_FORMAT}")
        return Chain(
            inputs=top.items("inputs", spec_from_json),
            outputs=top.items("outputs", spec_from_json),
            steps=top.items("steps", _step),
            constants=_texts(top, "constants"),
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{name}: its parts can't be read ({error}); build it again") from None
    except ModelLoadError as error:
        raise ModelLoadError(f"{name}: {error}; build it again") from None


def pack_constants(arrays: Mapping[str, Array]) -> bytes:
    """In the order of the mapping. Their names are in the chain: not every one could be that of a file."""
    stream = io.BytesIO()
    named: dict[str, Any] = {f"c{at}": array for at, array in enumerate(arrays.values())}
    np.savez(stream, **named)
    return stream.getvalue()


def unpack_constants(data: bytes, chain: Chain, name: str) -> dict[str, Array]:
    """Raises ModelLoadError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            return {each: found[f"c{at}"] for at, each in enumerate(chain.constants)}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{name}: constants of its custom operators can't be read ({error})") from None


def _step_to_json(step: Part | Call) -> dict[str, Any]:
    if isinstance(step, Part):
        return {"part": step.name, "inputs": list(step.inputs), "outputs": list(step.outputs)}
    return {
        "node": step.node,
        "domain": step.operator.domain,
        "operator": step.operator.name,
        "inputs": [spec_to_json(each) if each else None for each in step.inputs],
        "outputs": [spec_to_json(each) if each else None for each in step.outputs],
        "attributes": [{"name": name, **_attribute_to_json(value)} for name, value in step.attributes],
    }


def _step(data: Reader) -> Part | Call:
    if "part" in data:
        return Part(data.text("part"), _texts(data, "inputs"), _texts(data, "outputs"))
    return Call(
        data.text("node"),
        OpName(data.text("domain"), data.text("operator")),
        _specs(data, "inputs"),
        _specs(data, "outputs"),
        data.items("attributes", lambda each: (each.text("name"), _attribute(each))),
    )


def _texts(data: Reader, key: str) -> tuple[str, ...]:
    found = data.sequence(key)
    if not all(isinstance(each, str) for each in found):
        raise ModelLoadError(f"parts: {key} are names, got {found!r:.40}")
    return tuple(found)


def _specs(data: Reader, key: str) -> tuple[TensorSpec | None, ...]:
    return tuple(None if each is None else spec_from_json(Reader(each, key)) for each in data.sequence(key))


def _attribute_to_json(value: Attribute) -> dict[str, Any]:
    """Floats as text: JSON has no NaN and no infinity, and `repr` keeps every bit."""
    if isinstance(value, np.ndarray):
        raw = base64.b64encode(np.asarray(value, order="C").tobytes()).decode()
        return {"kind": "array", "value": raw, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, list):
        kind = next((_kind(each) for each in value), "int")
        return {"kind": f"{kind}s", "value": [repr(each) if kind == "float" else each for each in value]}
    return {"kind": _kind(value), "value": repr(value) if isinstance(value, float) else value}


def _kind(value: int | float | str) -> str:
    return "string" if isinstance(value, str) else "float" if isinstance(value, float) else "int"


def _attribute(data: Reader) -> Attribute:
    kind, value = data.text("kind"), data.value("value")
    if kind == "array":
        return _array(data)
    convert: type[int] | type[float] | type[str] = {"int": int, "float": float}.get(kind.removesuffix("s"), str)
    if kind.endswith("s"):
        return [convert(each) for each in data.sequence("value")]  # type: ignore[return-value]
    found: int | float | str = convert(value)
    return found


def _array(data: Reader) -> Array:
    shape = [int(size) for size in data.sequence("shape")]
    try:
        raw = base64.b64decode(data.text("value"), validate=True)
        dtype = np.dtype(data.text("dtype"))
        if dtype.kind not in "biuf":
            raise ModelLoadError(f"parts: an attribute of {dtype.name} is none that was written")
        return np.frombuffer(raw, dtype).reshape(shape).copy()
    except (binascii.Error, TypeError) as error:
        raise ModelLoadError(f"parts: an attribute can't be read ({error})") from None


def travels(array: Array) -> Array:
    """As tensors travel between parts: bfloat16 is uint16, text is bytes in an object array."""
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    if array.dtype.kind in "SU":
        words = np.empty(array.shape, object)
        words.reshape(-1)[:] = [item.encode() if isinstance(item, str) else bytes(item) for item in array.reshape(-1)]
        return words
    return array


def computable(array: Array, datatype: str) -> Array:
    """As functions get it: bfloat16 as ml_dtypes has it."""
    return array.view(bfloat16()) if datatype == "BF16" else array
