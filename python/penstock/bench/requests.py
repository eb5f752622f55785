"""Inputs as requests: random ones with a seed, zeros where asked, or those of a file; as JSON, binary or protobuf.

Several different sets are made, so that no cache on the way answers for the model. Called by `measuring`'s callers.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.bench.load import HTTP, Request
from penstock.bench.subject import Subject, Tensor, messages
from penstock.errors import InvalidArgument, NotFound
from penstock.tensors import DATATYPES, cut_to_bfloat16, numpy_dtype

Array = NDArray[Any]
Arrays = Mapping[str, Array]

RANDOM: Final = "random"
ZERO: Final = "zero"

_SETS: Final = 16
_MOST_BYTES: Final = 64 << 20  # of all sets together
_MOST_INPUT_BYTES: Final = 2**31 - 1  # what a message of protobuf holds
_WHOLE_BELOW: Final = 100
"""Random whole numbers: ids, tokens and pixels are rarely fewer, and tables seldom shorter."""

_LETTERS: Final = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ", "S1")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What inputs are made of."""

    data: str = RANDOM
    """`random`, `zero`, or the path of a JSON file as perf_analyzer's, or of a folder with a raw file an input."""

    batch: int = 1
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of inputs with free dimensions, without the batch."""

    seed: int = 0
    string_length: int = 128
    string_data: str | None = None
    json_inputs: bool = False
    json_outputs: bool = False


def requests(subject: Subject, wanted: Wanted, protocol: str) -> list[Request]:
    """Raises InvalidArgument for what the model can't be asked with, NotFound for files that are not there."""
    if wanted.batch > 1 and wanted.batch > subject.max_batch_size:
        raise InvalidArgument(
            f"batch size {wanted.batch}: model {subject.name} takes "
            + (f"up to {subject.max_batch_size} rows" if subject.max_batch_size else "no batches (max_batch_size is 0)")
        )
    unknown = set(wanted.shapes) - {each.name for each in subject.inputs}
    if unknown:
        raise InvalidArgument(
            f"shape of {sorted(unknown)[0]!r}: model {subject.name} has inputs "
            f"{', '.join(each.name for each in subject.inputs)}"
        )
    if wanted.data in (RANDOM, ZERO):
        steps = _made(subject, wanted)
        expected: list[Arrays] = []
    elif Path(wanted.data).is_dir():
        steps, expected = [_from_folder(subject, wanted, Path(wanted.data))], []
    else:
        steps, expected = _from_file(subject, wanted, Path(wanted.data))
    batched = _batches(steps, subject, wanted.batch)
    answers = _batches(expected, subject, wanted.batch) if expected else [None] * len(batched)
    return [_request(subject, wanted, protocol, each, answer) for each, answer in zip(batched, answers, strict=True)]


# ---- values ----


def _shape(tensor: Tensor, wanted: Wanted) -> tuple[int, ...]:
    given = wanted.shapes.get(tensor.name, tensor.shape)
    if tensor.name in wanted.shapes:
        fits = len(given) == len(tensor.shape) and all(
            free in (-1, size) for size, free in zip(given, tensor.shape, strict=True)
        )
        if not fits:
            raise InvalidArgument(
                f"shape of {tensor.name!r} is {'x'.join(map(str, given))}, "
                f"the model's is {list(tensor.shape)} (-1 is any size)"
            )
    if any(size < 0 for size in given):
        raise InvalidArgument(
            f"input {tensor.name!r} has the shape {list(tensor.shape)}: say which, as in --shape {tensor.name}:"
            + ",".join("224" if size < 0 else str(size) for size in given)
        )
    size = wanted.batch * math.prod(given) * _element_bytes(tensor, wanted)
    if size > _MOST_INPUT_BYTES:
        raise InvalidArgument(
            f"input {tensor.name!r} of {'x'.join(map(str, given))} takes {size} bytes in a request of {wanted.batch} "
            f"rows, expected at most {_MOST_INPUT_BYTES}"
        )
    return given


def _element_bytes(tensor: Tensor, wanted: Wanted) -> int:
    """At most, where values are made; of an unknown datatype none, which is refused elsewhere."""
    if tensor.datatype == "BYTES":
        return 4 + (wanted.string_length if wanted.string_data is None else len(wanted.string_data.encode()))
    return numpy_dtype(tensor.datatype).itemsize if tensor.datatype in DATATYPES else 0


def _made(subject: Subject, wanted: Wanted) -> list[Arrays]:
    """One row each."""
    shapes = {each.name: _shape(each, wanted) for each in subject.inputs}
    random = np.random.default_rng(wanted.seed)

    def one() -> Arrays:
        return {each.name: _values(each, shapes[each.name], wanted, random) for each in subject.inputs}

    if wanted.data == ZERO:
        return [one()]
    first = one()
    size = wanted.batch * sum(_size(array) for array in first.values())
    sets = max(1, min(_SETS, _MOST_BYTES // max(1, size)))
    return [first, *(one() for _ in range(sets * wanted.batch - 1))]


def _size(array: Array) -> int:
    return sum(len(each) for each in array.flat) if array.dtype == object else int(array.nbytes)


def _values(tensor: Tensor, shape: tuple[int, ...], wanted: Wanted, random: np.random.Generator) -> Array:
    if tensor.datatype not in DATATYPES:
        raise InvalidArgument(f"input {tensor.name!r} has datatype {tensor.datatype}, which is not of the v2 protocol")
    dtype = numpy_dtype(tensor.datatype)
    if tensor.datatype == "BYTES":
        return _strings(shape, wanted, random)
    if wanted.data == ZERO:
        return np.zeros(shape, dtype)
    if tensor.datatype == "BF16":
        return cut_to_bfloat16(random.standard_normal(shape).astype(np.float32))
    if dtype.kind == "f":
        return np.asarray(random.standard_normal(shape)).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(random.integers(0, 2, shape)).astype(dtype)
    return np.asarray(random.integers(0, 256 if tensor.datatype == "UINT8" else _WHOLE_BELOW, shape)).astype(dtype)


def _strings(shape: tuple[int, ...], wanted: Wanted, random: np.random.Generator) -> Array:
    found = np.empty(shape, object)
    for index in np.ndindex(shape):
        if wanted.string_data is not None:
            found[index] = wanted.string_data.encode()
        elif wanted.data == ZERO:
            found[index] = b""
        else:
            found[index] = random.choice(_LETTERS, wanted.string_length).tobytes()
    return found


def _from_folder(subject: Subject, wanted: Wanted, folder: Path) -> Arrays:
    found: dict[str, Array] = {}
    for each in subject.inputs:
        path = folder / each.name
        if not path.is_file():
            raise NotFound(f"{folder.name}: there is no file {each.name!r} for that input")
        found[each.name] = _from_bytes(each, path.read_bytes(), _shape(each, wanted))
    return found


def _from_bytes(tensor: Tensor, data: bytes, shape: tuple[int, ...]) -> Array:
    if tensor.datatype == "BYTES":
        return np.array([data], object).reshape(shape)
    dtype = numpy_dtype(tensor.datatype)
    count = int(np.prod(shape))
    if len(data) != count * dtype.itemsize:
        raise InvalidArgument(
            f"input {tensor.name!r}: {len(data)} bytes, expected {count * dtype.itemsize} of {tensor.datatype} "
            f"{list(shape)}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _from_file(subject: Subject, wanted: Wanted, path: Path) -> tuple[list[Arrays], list[Arrays]]:
    """`{"data": [{name: values}, ...], "validation_data": [...]}`; values: lists, `content` and `shape`, or `b64`."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{path.name}: no such file of inputs") from None
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path.name} is no JSON file of inputs: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("data"), list) or not document["data"]:
        raise InvalidArgument(f'{path.name}: expected {{"data": [{{"INPUT": [values]}}, ...]}}')

    def steps(key: str, tensors: Sequence[Tensor]) -> list[Arrays]:
        listed = document.get(key, [])
        flat = [step for each in listed for step in (each if isinstance(each, list) else [each])]
        return [_step(path.name, f"{key}[{at}]", step, tensors, wanted) for at, step in enumerate(flat)]

    data, expected = steps("data", subject.inputs), steps("validation_data", subject.outputs)
    if expected and len(expected) != len(data):
        raise InvalidArgument(f"{path.name}: {len(expected)} entries of validation_data for {len(data)} of data")
    if expected and wanted.json_outputs:
        raise InvalidArgument("validation_data is compared byte by byte: ask for binary outputs")
    return data, expected


def _step(file: str, place: str, step: Any, tensors: Sequence[Tensor], wanted: Wanted) -> Arrays:
    found: dict[str, Array] = {}
    for each in tensors:
        where = f"{file}: {place}.{each.name}"
        if not isinstance(step, dict) or each.name not in step:
            raise InvalidArgument(f"{where} is missing")
        value = step[each.name]
        shape = None
        if isinstance(value, dict):
            shape = tuple(value["shape"]) if "shape" in value else None
            if "b64" in value:
                found[each.name] = _from_bytes(each, base64.b64decode(value["b64"]), shape or _shape(each, wanted))
                continue
            value = value.get("content")
        try:
            array = _array(each, value)
            found[each.name] = array.reshape(shape if shape is not None else _fitting(each, array, wanted))
        except (ValueError, TypeError, OverflowError, AttributeError) as error:
            raise InvalidArgument(f"{where}: expected {each.datatype} {list(each.shape)} ({error})") from None
    return found


def _array(tensor: Tensor, value: Any) -> Array:
    if tensor.datatype == "BYTES":
        return np.array([each.encode() for each in np.asarray(value, object).ravel()], object)
    if tensor.datatype == "BF16":
        return cut_to_bfloat16(np.asarray(value, np.float32))
    return np.asarray(value).astype(numpy_dtype(tensor.datatype), casting="unsafe")


def _fitting(tensor: Tensor, array: Array, wanted: Wanted) -> tuple[int, ...]:
    """The shape that was given, else the array's own where that fits, else the model's."""
    if tensor.name not in wanted.shapes and array.ndim == len(tensor.shape):
        return array.shape
    return _shape(tensor, wanted)


# ---- the wire ----


def _batches(steps: Sequence[Arrays], subject: Subject, batch: int) -> list[Arrays]:
    """Rows one after the other, as many requests as there are whole batches; at least one, rows repeated."""
    if not subject.max_batch_size:
        return list(steps)
    count = max(1, len(steps) // batch)
    found: list[Arrays] = []
    for at in range(count):
        rows = [steps[(at * batch + row) % len(steps)] for row in range(batch)]
        try:
            found.append({name: np.stack([row[name] for row in rows]) for name in rows[0]})
        except ValueError:
            raise InvalidArgument(f"batch size {batch}: the rows of a batch have unlike shapes") from None
    return found


def raw(array: Array, datatype: str) -> bytes:
    """As binary tensors travel: little-endian, C order; strings each behind four bytes of length."""
    if datatype == "BYTES":
        return b"".join(len(each).to_bytes(4, "little") + each for each in array.flat)
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _request(subject: Subject, wanted: Wanted, protocol: str, inputs: Arrays, answer: Arrays | None) -> Request:
    expected = None
    if answer is not None:
        expected = b"".join(raw(answer[each.name], each.datatype) for each in subject.outputs)
    if protocol == HTTP:
        body, json_bytes = _http(subject, wanted, inputs)
        return Request(body, json_bytes, expected)
    return Request(_protobuf(subject, inputs), None, expected)


def _http(subject: Subject, wanted: Wanted, inputs: Arrays) -> tuple[bytes, int | None]:
    listed: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for each in subject.inputs:
        array = inputs[each.name]
        entry: dict[str, Any] = {"name": each.name, "shape": list(array.shape), "datatype": each.datatype}
        if wanted.json_inputs:
            entry["data"] = _plain(each, array)
        else:
            data = raw(array, each.datatype)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        listed.append(entry)
    binary = {"binary_data": not wanted.json_outputs}
    outputs = [{"name": each.name, "parameters": binary} for each in subject.outputs]
    head = json.dumps({"inputs": listed, "outputs": outputs}, separators=(",", ":")).encode()
    return (head, None) if wanted.json_inputs else (head + b"".join(tail), len(head))


def _plain(tensor: Tensor, array: Array) -> list[Any]:
    if tensor.datatype == "BYTES":
        return [each.decode(errors="replace") for each in array.flat]
    if tensor.datatype in ("FP16", "BF16"):
        raise InvalidArgument(f"input {tensor.name!r}: {tensor.datatype} has no form in JSON; send it as binary data")
    found: list[Any] = array.ravel().tolist()
    return found


def _protobuf(subject: Subject, inputs: Arrays) -> bytes:
    request = messages()["inference.ModelInferRequest"](model_name=subject.name, model_version=subject.version)
    for each in subject.inputs:
        request.inputs.add(name=each.name, datatype=each.datatype, shape=inputs[each.name].shape)
        request.raw_input_contents.append(raw(inputs[each.name], each.datatype))
    for each in subject.outputs:
        request.outputs.add(name=each.name)
    encoded: bytes = request.SerializeToString()
    return encoded
