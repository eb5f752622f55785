"""`model_warmup` of a configuration: batches that every instance runs before a version of a model takes requests.

    model_warmup [ { name: "full" batch_size: 8
      inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 3, 224, 224 ] random_data: true } } } ]

A sample says one row, and `batch_size` equal ones make its batch. Everything is checked against the finished
configuration when the model is loaded; arrays are made when they are needed, one sample at a time, and files of
MODEL/warmup are read then. As with Triton a sample whose batch_size is 0 is skipped, and a count of 0 is one. The serve
layer runs the samples.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from penstock import limits
from penstock.backends.base import Array
from penstock.errors import ConfigError
from penstock.repository.beneath import inside, plain
from penstock.repository.config import Config, data_type_name
from penstock.repository.padding import InputPadding
from penstock.tensors import TensorSpec, cut_to_bfloat16, to_triton

_FOLDER: Final = "warmup"  # in the model's directory
_SEED: Final = 0  # random data is the same in every load: one that succeeded once does so again
_PREFIX: Final = struct.Struct("<I")  # the length before each element of BYTES
_SHOWN: Final = 80  # characters of a configuration's own text in a message


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One row of one input."""

    where: str
    spec: TensorSpec
    """What clients would send: the shape is that of the row, without a batch dimension."""

    source: Path | Literal["zeros", "random"]
    padded: tuple[int, ...]
    """The shape once the parameter `padding` was applied."""

    filler: float

    @property
    def elements(self) -> int:
        return math.prod(self.spec.shape)

    def row(self, random: np.random.Generator) -> Array:
        """Raises ConfigError for a file that is not what the input needs."""
        match self.source:
            case "zeros":
                array = self._filled(self.spec.shape, 0)
            case "random":
                array = self._random(random)
            case Path() as path:
                array = self._decoded(_read(path, limits.WARMUP_BYTES, self.where))
        if self.padded == self.spec.shape:
            return array
        wide = self._filled(self.padded, self.filler)
        wide[tuple(slice(size) for size in self.spec.shape)] = array
        return wide

    def _filled(self, shape: tuple[int, ...], value: float) -> Array:
        if self.spec.datatype == "BYTES":
            return np.full(shape, b"", np.object_)
        if self.spec.datatype == "BF16":
            return cut_to_bfloat16(np.full(shape, value, np.float32))
        return np.full(shape, value, self.spec.dtype) if value else np.zeros(shape, self.spec.dtype)

    def _random(self, random: np.random.Generator) -> Array:
        """Integers of their whole range; floats from [0, 1), where random bits would hold NaNs and infinities."""
        shape, dtype, datatype = self.spec.shape, self.spec.dtype, self.spec.datatype
        if datatype == "BYTES":  # as with Triton: empty
            return self._filled(shape, 0)
        if datatype == "BOOL":
            return random.integers(0, 2, shape, np.bool_)
        if datatype == "BF16":
            return cut_to_bfloat16(random.random(shape, np.float32))
        if dtype.kind == "f":
            floats: Array = random.random(shape, np.float64 if datatype == "FP64" else np.float32).astype(dtype)
            return floats
        bounds = np.iinfo(dtype)
        integers: Array = random.integers(bounds.min, bounds.max, shape, dtype.type, endpoint=True)
        return integers

    def _decoded(self, data: bytes) -> Array:
        if self.spec.datatype == "BYTES":
            flat = np.empty(self.elements, np.object_)
            flat[:] = _elements(data, self.elements, self.where)
            return flat.reshape(self.spec.shape)
        self.check_size(len(data))
        if self.spec.datatype == "BOOL":
            return np.frombuffer(data, np.uint8).reshape(self.spec.shape).astype(np.bool_)
        array = np.frombuffer(data, self.spec.dtype.newbyteorder("<")).reshape(self.spec.shape)
        return array.astype(self.spec.dtype)

    def check_size(self, size: int) -> None:
        """Of the file that has the row; BYTES show theirs when they are read."""
        expected = self.elements * self.spec.dtype.itemsize
        if self.spec.datatype != "BYTES" and size != expected:
            raise ConfigError(
                f"{self.where}: its file has {size} bytes, expected {expected}: one row of {self.spec.datatype}"
                f"{list(self.spec.shape)}"
            )

    def batch_bytes(self, rows: int) -> int:
        """Of all rows; of BYTES what points to the elements, and the file that they come from."""
        size = math.prod(self.padded) * self.spec.dtype.itemsize * rows
        if self.spec.datatype == "BYTES" and isinstance(self.source, Path):
            size += self.source.stat().st_size
        return size


@dataclass(frozen=True, slots=True)
class Sample:
    """One batch, and how often each instance runs it."""

    name: str
    """In messages: quoted, or its number when it has none."""

    count: int
    rows: int
    """0: the model has no batch dimension."""

    tensors: tuple[_Tensor, ...]

    def row(self) -> dict[str, Array]:
        """By input what all rows of the batch are; raises ConfigError for a file that is not what its input needs."""
        random = np.random.default_rng(_SEED)
        return {tensor.spec.name: tensor.row(random) for tensor in self.tensors}

    def batch(self, row: dict[str, Array]) -> dict[str, Array]:
        """Arrays that nobody else has, since a model may write to its inputs."""
        return {
            name: np.repeat(each[None], self.rows, axis=0) if self.rows else np.array(each)
            for name, each in row.items()
        }


def samples(config: Config, directory: Path, root: Path) -> tuple[Sample, ...]:
    """What a finished configuration asks for; `directory` is the model's, and `root`, resolved, what links stay in.

    Raises ConfigError, or ModelLoadError for a file that is missing or elsewhere; each names the sample and the input.
    """
    found = tuple(
        _sample(config, item, repr(item.name[:_SHOWN]) if item.name else f"number {number}", directory, root)
        for number, item in enumerate(config.message.model_warmup, 1)
        if item.batch_size > 0
    )
    executions = sum(sample.count for sample in found)
    if executions > limits.WARMUP_EXECUTIONS:
        raise ConfigError(
            f"model {config.name!r}: model_warmup asks for {executions} executions by each instance, expected at most "
            f"{limits.WARMUP_EXECUTIONS}; lower count"
        )
    return found


def _sample(config: Config, item: Any, name: str, directory: Path, root: Path) -> Sample:
    where = f"model {config.name!r}: model_warmup sample {name}"
    largest = config.max_batch_size
    if item.batch_size > max(largest, 1):
        expected = f"at most max_batch_size {largest}" if largest else "1: the model does not batch"
        raise ConfigError(f"{where}: batch_size is {item.batch_size}, expected {expected}")
    known = {spec.name: (spec, entry) for spec, entry in zip(config.inputs, config.message.input, strict=True)}
    tensors = []
    for key in sorted(item.inputs):
        if key not in known:
            raise ConfigError(f"{where}: unexpected input {key[:_SHOWN]!r}, the model has {', '.join(known)}")
        tensors.append(_tensor(config, *known[key], item.inputs[key], where, directory, root))
    missing = [key for key, (spec, _) in known.items() if not spec.optional and key not in item.inputs]
    if missing:
        raise ConfigError(f"{where}: input {missing[0]!r} is missing; the model needs it in every batch")
    sizes = {tensor.spec.name: tensor.batch_bytes(item.batch_size) for tensor in tensors}
    if sum(sizes.values()) > limits.WARMUP_BYTES:
        raise ConfigError(
            f"{where}: its batch has {sum(sizes.values())} bytes, expected at most {limits.WARMUP_BYTES}; most are of "
            f"input {max(sizes, key=lambda key: sizes[key])!r}"
        )
    return Sample(name, item.count or 1, item.batch_size if largest else 0, tuple(tensors))


def _tensor(
    config: Config, spec: TensorSpec, entry: Any, item: Any, where: str, directory: Path, root: Path
) -> _Tensor:
    where = f"{where}: input {spec.name!r}"
    if data_type_name(item) != to_triton(spec.datatype):
        raise ConfigError(f"{where}: data_type is {data_type_name(item)}, expected {to_triton(spec.datatype)}")
    shape = _client_shape(spec, entry, tuple(item.dims), where)
    row = TensorSpec(spec.name, spec.datatype, shape)
    rules = [rule for rule in config.padding.inputs if rule.name == spec.name] if config.padding else []
    source: Path | Literal["zeros", "random"]
    match item.WhichOneof("input_data_type"):
        case "zero_data":
            source = "zeros"
        case "random_data":
            source = "random"
        case "input_data_file":
            source = _file(item.input_data_file, where, directory, root)
        case _:
            raise ConfigError(f"{where}: expected zero_data, random_data or input_data_file")
    found = _Tensor(where, row, source, _padded(shape, rules), rules[0].value if rules else 0)
    if isinstance(source, Path):
        found.check_size(source.stat().st_size)
    return found


def _client_shape(spec: TensorSpec, entry: Any, dims: tuple[int, ...], where: str) -> tuple[int, ...]:
    """The row as clients send it. Triton takes the shape behind a `reshape`, so that one is understood, too."""
    if len(dims) > limits.TENSOR_DIMS:
        raise ConfigError(f"{where}: there are {len(dims)} dims, the model takes {list(spec.shape)}")
    if min(dims, default=0) < 0:
        raise ConfigError(f"{where}: dims are {list(dims)}, expected a size for every dimension")
    if spec.accepts(dims):
        return dims
    behind = TensorSpec(spec.name, spec.datatype, tuple(entry.reshape.shape))
    if entry.HasField("reshape") and behind.accepts(dims):
        free = iter([size for size, fixed in zip(dims, behind.shape, strict=True) if fixed == -1])
        return tuple(next(free) if size == -1 else size for size in spec.shape)
    batch = " (max_batch_size > 0: dims leave the batch dimension out)" if len(dims) == len(spec.shape) + 1 else ""
    raise ConfigError(f"{where}: dims are {list(dims)}, the model takes {list(spec.shape)}{batch}")


def _padded(shape: tuple[int, ...], rules: Sequence[InputPadding]) -> tuple[int, ...]:
    """What the data plane makes of rows of this shape; its axes count the batch."""
    sizes = list(shape)
    for rule in rules:
        size = max(sizes[rule.axis - 1], 1)
        sizes[rule.axis - 1] = size + -size % rule.multiple
    return tuple(sizes)


def _file(name: str, where: str, directory: Path, root: Path) -> Path:
    if not plain(name):
        raise ConfigError(
            f"{where}: input_data_file is refused, expected a path of A-Z a-z 0-9 . _ - beneath {_FOLDER}/ in the "
            "model's directory"
        )
    path = inside(directory / _FOLDER / name, root, where)
    if not path.is_file():
        raise ConfigError(f"{where}: input_data_file {name[:_SHOWN]!r} is not a file")
    return path.resolve()


def _read(path: Path, most: int, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{where}: its file can't be read: {error.strerror}") from None


def _elements(data: bytes, count: int, where: str) -> list[bytes]:
    """BYTES as on the wire: each element after its length."""
    found = list(islice(_split(data, where), count + 1))  # no more than was asked for becomes objects
    if len(found) != count:
        raise ConfigError(
            f"{where}: its file has {'more' if len(found) > count else len(found)} elements, expected {count}"
        )
    return found


def _split(data: bytes, where: str) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        start = at + _PREFIX.size
        end = start + _PREFIX.unpack_from(data, at)[0] if start <= len(data) else start
        if end > len(data):
            raise ConfigError(
                f"{where}: its file of {len(data)} bytes ends inside an element; expected each after its length in "
                "4 bytes, little-endian"
            )
        yield data[start:end]
        at = end
