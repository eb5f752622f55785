"""What a built program for a GPU is besides its graph and weights: choices, and machine code of our own kernels.

JSON, with machine code in base64. Promises: `from_bytes` reads what `to_bytes` wrote and refuses everything else
(ModelLoadError). Written and read by the runtime `cuda`; imports neither torch nor triton.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.engine.cuda import choices as chosen
from penstock.engine.cuda.choices import Choice, Choices
from penstock.engine.cuda.kernels.driver import SealedKernel
from penstock.engine.plan import Shape, Shapes
from penstock.errors import InvalidArgument, ModelLoadError

FORMAT: Final = 1
_MOST_BLOCKS: Final = (1 << 31) - 1  # of a grid's first axis; the others allow less, and the driver says so
_MOST_THREADS: Final = 1024
_MOST_SHARED: Final = 1 << 20


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


def to_bytes(artifact: Artifact) -> bytes:
    codes = {kernel.cubin: None for kernel in artifact.kernels}
    index = {code: number for number, code in enumerate(codes)}
    data = {
        "format": FORMAT,
        "shapes": {name: list(shape) for name, shape in artifact.shapes.items()},
        "precision": artifact.precision,
        "choices": json.loads(chosen.to_json(artifact.choices)),
        "early_launch": artifact.early_launch,
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
            }
            for each in artifact.kernels
        ],
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def from_bytes(data: bytes | memoryview, name: str) -> Artifact:
    """Raises ModelLoadError; `name` is for messages."""
    try:
        found = json.loads(bytes(data))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}, this version reads {FORMAT}")
        codes = [base64.b64decode(each, validate=True) for each in found["codes"]]
        return Artifact(
            {str(key): _shape(shape) for key, shape in found["shapes"].items()},
            str(found["precision"]),
            _choices(found["choices"]),
            found["early_launch"] is True,
            tuple(_kernel(each, codes) for each in found["kernels"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, InvalidArgument) as error:
        raise ModelLoadError(f"{name}: a program for a GPU can't be read ({error!s:.300}); build it again") from None
    except binascii.Error as error:
        raise ModelLoadError(f"{name}: machine code can't be read ({error}); build it again") from None


def _choices(data: object) -> dict[str, Choice]:
    return chosen.from_json(json.dumps(data))


def _shape(data: object) -> Shape:
    if not isinstance(data, list):
        raise TypeError(f"a shape is {data!r:.60}")
    return tuple(_number(each, _MOST_BLOCKS) for each in data)


def _kernel(data: Mapping[str, Any], codes: list[bytes]) -> SealedKernel:
    width, height, depth = (_number(each, _MOST_BLOCKS) for each in data["grid"])
    parameters = str(data["parameters"])
    if set(parameters) - {"p", "f"}:
        raise ValueError(f"parameters {parameters!r:.60}")
    return SealedKernel(
        codes[_number(data["code"], len(codes))],
        str(data["symbol"]),
        (width, height, depth),
        _number(data["threads"], _MOST_THREADS),
        _number(data["shared_bytes"], _MOST_SHARED),
        parameters,
        data["early"] is True,
    )


def _number(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"expected a number up to {most}, got {value!r:.60}")
    return value
