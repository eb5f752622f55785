"""What a built program for a GPU is besides its graph and weights: choices, and machine code of our own kernels.

JSON, with machine code in base64. Promises: `from_bytes` reads what `to_bytes` wrote and refuses everything else
(ModelLoadError); machine code is a whole ELF file, since a driver reads as far as its headers say. Written and read by
the runtime `cuda`; imports neither torch nor triton.
"""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Final

from penstock.engine.cuda import choices as chosen
from penstock.engine.cuda.choices import Choice, Choices
from penstock.engine.cuda.kernels.driver import AnyMap, PixelsMap, SealedKernel, TensorMap, WindowMap
from penstock.engine.plan import Shape, Shapes
from penstock.errors import InvalidArgument, ModelLoadError

FORMAT: Final = 2
_MOST_BLOCKS: Final = (1 << 31) - 1  # of a grid's first axis; the others allow less, and the driver says so
_MOST_THREADS: Final = 1024
_MOST_SHARED: Final = 1 << 20
_MOST_BLOCKS_IN_A_CLUSTER: Final = 16
_MOST_STEPS: Final = 1 << 20

_ELF_64_LITTLE: Final = b"\x7fELF\x02\x01"
_ELF_CUDA: Final = 190  # of the field `machine`
_ELF_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_ELF_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_ELF_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_ELF_EMPTY_TYPES: Final = (0, 8)  # NULL and NOBITS: sections of which nothing lies in the file


@dataclass(frozen=True, slots=True)
class Artifact:
    """One bucket."""

    shapes: Shapes
    precision: str
    """Of `executor.PRECISIONS`."""

    choices: Choices
    early_launch: bool
    kernels: tuple[SealedKernel, ...]
    """In the order in which they are launched."""

    side: tuple[int, ...] = ()
    """Steps that run beside the others: kernels hold who of them is launched early."""


def to_bytes(artifact: Artifact) -> bytes:
    codes = {kernel.cubin: None for kernel in artifact.kernels}
    index = {code: number for number, code in enumerate(codes)}
    data = {
        "format": FORMAT,
        "shapes": {name: list(shape) for name, shape in artifact.shapes.items()},
        "precision": artifact.precision,
        "choices": json.loads(chosen.to_json(artifact.choices)),
        "early_launch": artifact.early_launch,
        "side": list(artifact.side),
        "codes": [base64.b64encode(code).decode() for code in codes],
        "kernels": [
            {
                "code": index[each.cubin],
                "symbol": each.symbol,
                "grid": list(each.grid),
                "threads": each.threads,
                "shared_bytes": each.shared_bytes,
                "parameters": each.parameters,
                "early": each.pdl,
                "cluster": each.cluster,
                "maps": [astuple(one) for one in each.maps],
            }
            for each in artifact.kernels
        ],
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def from_bytes(data: bytes | memoryview, name: str) -> Artifact:
    """Raises ModelLoadError; `name` is for messages."""
    try:
        found = json.loads(str(data, "utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}, this version reads {FORMAT}")
        codes = [_code(each) for each in found["codes"]]
        return Artifact(
            {str(key): _shape(shape) for key, shape in found["shapes"].items()},
            str(found["precision"]),
            _choices(found["choices"]),
            found["early_launch"] is True,
            tuple(_kernel(each, codes) for each in found["kernels"]),
            tuple(_number(each, _MOST_STEPS) for each in found["side"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, struct.error, InvalidArgument) as error:
        raise ModelLoadError(f"{name}: a program for a GPU can't be read ({error!s:.300}); build it again") from None


def _code(text: str) -> bytes:
    """Machine code whose headers and what they speak of lie inside it."""
    code = base64.b64decode(text, validate=True)
    if not code.startswith(_ELF_64_LITTLE):
        raise ValueError("machine code is no 64-bit ELF file")
    (_, _, machine, _, _, segments_at, sections_at, _, header_size, segment_size, segments, section_size, sections,
     names) = _ELF_HEADER.unpack_from(code)  # fmt: skip
    if machine != _ELF_CUDA or header_size != _ELF_HEADER.size:
        raise ValueError(f"machine code is for {machine}, expected {_ELF_CUDA}")
    if not sections or names >= sections or section_size != _ELF_SECTION.size:
        raise ValueError(f"machine code has {sections} sections of {section_size} bytes")
    if segments and segment_size != _ELF_SEGMENT.size:
        raise ValueError(f"machine code has segments of {segment_size} bytes")
    parts = [(sections_at, sections * section_size), (segments_at, segments * segment_size)]
    if any(at + size > len(code) for at, size in parts):
        raise ValueError("machine code ends before its headers")
    for at in range(sections_at, sections_at + sections * section_size, section_size):
        _, kind, _, _, begin, size, *_ = _ELF_SECTION.unpack_from(code, at)
        parts += [] if kind in _ELF_EMPTY_TYPES else [(begin, size)]
    for at in range(segments_at, segments_at + segments * segment_size, _ELF_SEGMENT.size):
        _, _, begin, _, _, size, *_ = _ELF_SEGMENT.unpack_from(code, at)
        parts.append((begin, size))
    if any(at + size > len(code) for at, size in parts):
        raise ValueError("machine code ends before its sections")
    return code


def _choices(data: object) -> dict[str, Choice]:
    return chosen.from_json(json.dumps(data))


def _shape(data: object) -> Shape:
    if not isinstance(data, list):
        raise TypeError(f"a shape is {data!r:.60}")
    return tuple(_number(each, _MOST_BLOCKS) for each in data)


def _kernel(data: Mapping[str, Any], codes: list[bytes]) -> SealedKernel:
    width, height, depth = (_number(each, _MOST_BLOCKS) for each in data["grid"])
    parameters = str(data["parameters"])
    maps = tuple(_map(each) for each in data["maps"])
    if not min(width, height, depth) or width % max(1, int(data["cluster"])):
        raise ValueError(f"a grid of {width} x {height} x {depth} blocks in clusters of {data['cluster']!r:.60}")
    if set(parameters) - {"p", "f", "m", "t"} or sum(map(parameters.count, "mt")) != len(maps):
        raise ValueError(f"parameters {parameters!r:.60} with {len(maps)} maps")
    return SealedKernel(
        codes[_number(data["code"], len(codes) - 1)],
        str(data["symbol"]),
        (width, height, depth),
        _number(data["threads"], _MOST_THREADS, least=1),
        _number(data["shared_bytes"], _MOST_SHARED),
        parameters,
        data["early"] is True,
        _number(data["cluster"], _MOST_BLOCKS_IN_A_CLUSTER, least=1),
        maps,
    )


_ITEM_SIZES: Final = (1, 2, 4)
_MAPS: Final = {len(fields(kind)): kind for kind in (TensorMap, PixelsMap, WindowMap)}


def _map(data: Sequence[object]) -> AnyMap:
    found = _MAPS[len(data)](*(_number(size, _MOST_BLOCKS) for size in data))
    if found.itemsize not in _ITEM_SIZES:
        raise ValueError(f"a map of elements of {found.itemsize} bytes")
    return found


def _number(value: object, most: int, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"expected a number from {least} to {most}, got {value!r:.60}")
    return value
