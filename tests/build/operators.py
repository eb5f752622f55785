"""Custom operators for tests, in a module of its own: the builder's child processes import it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import penstock as ps
from penstock.tensors import TensorSpec

Array = NDArray[Any]
DOMAIN = "tests.build"


@ps.custom_op(DOMAIN, "Twice")
def twice(x: Array) -> Array:
    return x * np.float32(2)


@ps.custom_op(DOMAIN, "Mix", outputs=["float32"])
def mix(left: Array, right: Array, bias: Array | None = None, *, alpha: float = 0.5) -> Array:
    mixed = left * np.float32(alpha) + right * np.float32(1 - alpha)
    return mixed if bias is None else mixed + bias


def halves_outputs(x: TensorSpec, *, axis: int) -> list[tuple[str, list[int]]]:
    assert axis == 1
    rows, columns = x.shape
    return [("float32", [rows, columns // 2])] * 2


@ps.custom_op(DOMAIN, "Halves", outputs=halves_outputs)
def halves(x: Array, *, axis: int) -> tuple[Array, ...]:
    return tuple(np.split(x, 2, axis))


@ps.custom_op(DOMAIN, "Same")
def same(x: Array) -> Array:
    """The very array that came in."""
    return x


def same_shape(x: TensorSpec, *, how: str) -> list[tuple[str, tuple[int, ...]]]:
    return [("float32", x.shape)]


@ps.custom_op(DOMAIN, "Faulty", outputs=same_shape)
def faulty(x: Array, *, how: str) -> Any:
    """Wrong in the way that the node asks for."""
    if how == "raise":
        raise ValueError("no boxes in /srv/secret/boxes.txt")
    if how == "write":
        x[:] = 0
    return {
        "type": x.astype(np.float64),
        "rank": x[None],
        "shape": x[:, 1:],
        "few": (),
        "words": np.array("text", "S4"),
        "odd": np.zeros(x.shape, np.complex64),
    }[how]


@ps.custom_op(DOMAIN, "Picky", outputs=["float32"])
def picky(x: Array) -> Array:
    """Takes no noise."""
    raise ValueError("expected real boxes")


@ps.custom_op(DOMAIN, "Narrow")
def narrow(x: Array) -> Array:
    """A column less than the layer behind it takes; the registration does not say."""
    return x[:, 1:]
