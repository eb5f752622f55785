"""The models that the test servers offer, each with its arithmetic written a second time for the tests.

One table for both servers: `models.py` turns the entries into Penstock functions, `triton_repository.py` into a model
repository for a real Triton. Tests take names, shapes and the right answers from here, so that a model that exists on
one server only, or with another shape, is impossible.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

NUMPY: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "BYTES": np.object_,
}


@dataclass(frozen=True)
class Tensor:
    """An input or output: the shape leaves the batch dimension out, -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Model:
    """`behaviour` names the function that both servers run; `reference` is what it must answer."""

    name: str
    behaviour: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    reference: Callable[[Arrays], dict[str, Array]]
    max_batch_size: int = 8
    instances: int = 1
    max_queue_size: int = 0

    def input(self, name: str) -> Tensor:
        return next(tensor for tensor in self.inputs if tensor.name == name)


def _reverse(x: Array) -> Array:
    reversed_elements = np.empty(x.shape, dtype=np.object_)
    for index in np.ndindex(x.shape):
        reversed_elements[index] = bytes(x[index])[::-1]
    return reversed_elements


def _double(arrays: Arrays) -> dict[str, Array]:
    return {"y": arrays["x"] * arrays["x"].dtype.type(2)}


def _negate(arrays: Arrays) -> dict[str, Array]:
    return {"y": np.logical_not(arrays["x"])}


def _reverse_each(arrays: Arrays) -> dict[str, Array]:
    return {"y": _reverse(arrays["x"])}


def _addsub(arrays: Arrays) -> dict[str, Array]:
    return {
        "OUTPUT0": arrays["INPUT0"] + arrays["INPUT1"],
        "OUTPUT1": arrays["INPUT0"] - arrays["INPUT1"],
    }


def _biased(arrays: Arrays) -> dict[str, Array]:
    return {"y": arrays["x"] + arrays["bias"] if "bias" in arrays else arrays["x"]}


def _same(arrays: Arrays) -> dict[str, Array]:
    return {"slept": arrays["ms"]}


def _doubling(datatype: str) -> Model:
    return Model(
        name=f"double_{datatype.lower()}",
        behaviour="double",
        inputs=(Tensor("x", datatype, (16,)),),
        outputs=(Tensor("y", datatype, (16,)),),
        reference=_double,
    )


_MS = (Tensor("ms", "INT32", (1,)),)
_SLEPT = (Tensor("slept", "INT32", (1,)),)

MODELS: tuple[Model, ...] = (
    *(_doubling(datatype) for datatype in ("FP32", "FP16", "INT64", "UINT8")),
    Model("negate", "negate", (Tensor("x", "BOOL", (16,)),), (Tensor("y", "BOOL", (16,)),), _negate),
    Model("reverse", "reverse", (Tensor("x", "BYTES", (4,)),), (Tensor("y", "BYTES", (4,)),), _reverse_each),
    Model(
        "addsub",
        "addsub",
        (Tensor("INPUT0", "FP32", (16,)), Tensor("INPUT1", "FP32", (16,))),
        (Tensor("OUTPUT0", "FP32", (16,)), Tensor("OUTPUT1", "FP32", (16,))),
        _addsub,
    ),
    Model("variable", "double", (Tensor("x", "FP32", (-1,)),), (Tensor("y", "FP32", (-1,)),), _double),
    Model(
        "unbatched", "double", (Tensor("x", "FP32", (2, 3)),), (Tensor("y", "FP32", (2, 3)),), _double, max_batch_size=0
    ),
    Model(
        "optional",
        "biased",
        (Tensor("x", "FP32", (16,)), Tensor("bias", "FP32", (16,), optional=True)),
        (Tensor("y", "FP32", (16,)),),
        _biased,
    ),
    Model("slow", "sleep", _MS, _SLEPT, _same, max_batch_size=1),
    # For tests that count what was executed; no other test sends to them.
    Model("cancelled", "sleep", _MS, _SLEPT, _same, max_batch_size=1),
    Model("late", "sleep", _MS, _SLEPT, _same, max_batch_size=1),
    Model("full", "sleep", _MS, _SLEPT, _same, max_batch_size=1, max_queue_size=1),
    Model(
        "pair",
        "double",
        (Tensor("x", "FP32", (16,)),),
        (Tensor("y", "FP32", (16,)),),
        _double,
        max_batch_size=64,
        instances=2,
    ),
)
BY_NAME: Mapping[str, Model] = {model.name: model for model in MODELS}


def random_array(tensor: Tensor, batch: int | None, rng: np.random.Generator, free: int = 5) -> Array:
    """Fresh values of the tensor's datatype; `batch` None leaves the batch dimension out, -1 becomes `free`."""
    shape = tuple(free if size == -1 else size for size in tensor.shape)
    if batch is not None:
        shape = (batch, *shape)
    if tensor.datatype == "BYTES":
        elements = np.empty(shape, dtype=np.object_)
        for index in np.ndindex(shape):
            elements[index] = rng.bytes(int(rng.integers(0, 40)))
        return elements
    if tensor.datatype == "BOOL":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if tensor.datatype in ("FP16", "FP32"):
        return rng.standard_normal(shape).astype(NUMPY[tensor.datatype])
    # Half of the range, so that doubling is exact.
    limits = np.iinfo(NUMPY[tensor.datatype])
    return rng.integers(limits.min // 2, limits.max // 2, shape).astype(NUMPY[tensor.datatype])


def random_inputs(model: Model, batch: int, rng: np.random.Generator) -> dict[str, Array]:
    rows = batch if model.max_batch_size else None
    return {tensor.name: random_array(tensor, rows, rng) for tensor in model.inputs}
