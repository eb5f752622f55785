"""Custom operators: Python functions that stand in for operators that no library knows.

A registry of the process, filled by `custom_op`, by importing the user's module. Nothing here imports a module because
a file names it: `import_ops` is called with what the operator of the program gave (`--custom-ops`,
`load(custom_ops=...)`), and `Imports` travels from a builder to the child processes that it started itself. Called by
`chained` (to run them), graph and build (to know and to describe them), and by users.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.engine.importing import here_on_path
from penstock.engine.plan import CustomOperator
from penstock.engine.runtimes.base import library_message
from penstock.errors import ExecutionError, InvalidArgument
from penstock.tensors import TensorSpec, bfloat16, datatype_of

Array = NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

STANDARD: Final = ("", "ai.onnx")

Outputs = Sequence[str] | Callable[..., Iterable[tuple[str, Sequence[int]]]]
"""NumPy names of the results' element types, or a function of the inputs' TensorSpecs that gives types and shapes."""


class OpName(NamedTuple):
    """An operator, as ONNX names it."""

    domain: str
    name: str

    def __str__(self) -> str:
        return f"{self.domain}::{self.name}"


@dataclass(frozen=True, slots=True)
class CustomOp:
    """A registered function."""

    name: OpName
    function: Callable[..., Any]
    outputs: Outputs | None
    source: str
    """What has to be imported elsewhere to have it: `module` or `module:function`."""


_REGISTERED: dict[OpName, CustomOp] = {}
_IMPORTING: ContextVar[str | None] = ContextVar("_IMPORTING", default=None)


def custom_op(domain: str, op: str, *, outputs: Outputs | None = None) -> Callable[[Function], Function]:
    """Register a function for an ONNX operator: `@ps.custom_op("my.domain", "MyOp")`.

    The function gets NumPy arrays in the order of the node's inputs, read-only, None for one that is left out, bfloat16
    as ml_dtypes has it; and the node's attributes as keyword arguments. It returns an array, or a tuple of arrays, and
    is called from several threads at once.

    outputs  element types of the results (`["float32"]`), or a function of the inputs' TensorSpecs and the attributes
             that gives a (type, shape) for each result, -1 for a size that is free: then every call is checked against
             it. Without it the model's own value_info says, or one call with an example.

    Raises InvalidArgument for an ONNX standard operator, and for one that another function is registered for.
    """
    name = OpName(domain, op)
    if domain in STANDARD or not op:
        raise InvalidArgument(f"custom operator {name}: expected a domain of your own, and the operator's name")
    if outputs is not None and not callable(outputs):
        _check_types(name, outputs)

    def register(function: Function) -> Function:
        if not callable(function):
            raise InvalidArgument(f"custom operator {name}: expected a function, got {type(function).__name__}")
        module = str(getattr(function, "__module__", None) or "__main__")
        there = _REGISTERED.get(name)
        if there is not None and _identity(there.function) != _identity(function):
            raise InvalidArgument(
                f"custom operator {name} is registered for {'.'.join(_identity(there.function))} already, "
                f"got {'.'.join(_identity(function))}; register one"
            )
        _REGISTERED[name] = CustomOp(name, function, outputs, _IMPORTING.get() or module)
        return function

    return register


def find(name: OpName) -> CustomOp | None:
    return _REGISTERED.get(name)


def get(name: OpName) -> CustomOp:
    """Raises InvalidArgument where nothing is registered."""
    found = _REGISTERED.get(name)
    if found is None:
        raise InvalidArgument(
            f"custom operator {name} is not registered in this process; import the module that registers it, or give "
            "it with custom_ops= or --custom-ops"
        )
    return found


def lacking(used: Iterable[CustomOperator]) -> tuple[CustomOperator, ...]:
    """Those that this process has no function for."""
    return tuple(each for each in used if OpName(each.domain, each.name) not in _REGISTERED)


def import_ops(source: str) -> None:
    """Import `module`, or import it and call `module:function`; the working directory is on the path.

    The code is the user's own, and runs. Raises InvalidArgument where there is no such thing, or where it fails.
    """
    here_on_path()
    _import(source)


@dataclass(frozen=True, slots=True)
class Imports:
    """What a child process of a builder imports to have the same functions, and where it finds it."""

    sources: tuple[str, ...]
    path: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[OpName]) -> "Imports":
        """Raises InvalidArgument for functions that another process can't import."""
        found = [get(name) for name in names]
        for each in found:
            if each.source.partition(":")[0] == "__main__":
                raise InvalidArgument(
                    f"custom operator {each.name} is defined in the program itself, which the builder's child "
                    "processes can't import; put it into a module of its own and import that"
                )
        if not found:
            return cls((), ())
        path = tuple(str(Path(each or ".").resolve()) for each in sys.path)
        return cls(tuple(dict.fromkeys(each.source for each in found)), path)

    def to_json(self) -> dict[str, Any]:
        return {"sources": list(self.sources), "path": list(self.path)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Imports":
        return cls(tuple(map(str, data["sources"])), tuple(map(str, data["path"])))

    def carry_out(self) -> None:
        """Raises InvalidArgument."""
        # Behind what is there: nothing of the user's may stand in for a library's module.
        sys.path += [each for each in self.path if each not in sys.path]
        for each in self.sources:
            _import(each)


def _import(source: str) -> None:
    module, _, name = source.partition(":")
    token = _IMPORTING.set(source)
    try:
        found: Any = importlib.import_module(module)
        if name:
            getattr(found, name)()
    except InvalidArgument:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or module
        why = "looked in the working directory and the installed packages" if missing == module else "which it imports"
        raise InvalidArgument(f"custom operators {source}: there is no module {missing!r}, {why}") from error
    except Exception as error:  # whatever the user's code does
        raise InvalidArgument(f"custom operators {source}: {type(error).__name__}: {error}") from error
    finally:
        _IMPORTING.reset(token)


def described(
    op: CustomOp, inputs: Sequence[TensorSpec | None], attributes: Mapping[str, Any]
) -> list[TensorSpec] | None:
    """What `outputs` of the registration says of a node, names left empty; None where it says nothing of shapes."""
    if op.outputs is None or not callable(op.outputs):
        return None
    try:
        return [
            TensorSpec("", datatype_of(_dtype(kind)), tuple(int(size) for size in shape))
            for kind, shape in op.outputs(*inputs, **attributes)
        ]
    except Exception as error:  # the user's function, and whatever it gives
        raise InvalidArgument(
            f"custom operator {op.name}: its outputs function failed: {type(error).__name__}: {error}; expected "
            '(type, shape) for each result, as in [("float32", (-1, 4))]'
        ) from error


def types(op: CustomOp) -> tuple[str, ...]:
    """v2 datatypes that the registration lists; none where it lists none."""
    if op.outputs is None or callable(op.outputs):
        return ()
    return tuple(datatype_of(_dtype(kind)) for kind in op.outputs)


def call(op: CustomOp, node: str, arrays: Sequence[Array | None], attributes: Mapping[str, Any]) -> list[Array]:
    """Run the function once; its results as arrays, whatever they are. Raises ExecutionError, which names the node."""
    try:
        found = op.function(*map(_shown, arrays), **attributes)
        several = isinstance(found, tuple) or (
            isinstance(found, list) and all(isinstance(it, np.ndarray) for it in found)
        )
        results = list(found) if several else [found]
        return [np.asarray(each) for each in results]
    except Exception as error:  # the user's function may raise anything
        said = library_message(error, Path("model"))
        raise ExecutionError(f"{place(op.name, node)} raised {type(error).__name__}: {said}") from error


def place(name: OpName, node: str) -> str:
    """How messages speak of a node."""
    return f"custom operator {name} (node {node!r})"


def _shown(array: Array | None) -> Array | None:
    """What others read later is not changed by a function that computes in place: it gets an error instead."""
    if array is None:
        return None
    view = array.view()
    view.flags.writeable = False
    return view


def _identity(function: Callable[..., Any]) -> tuple[str, str]:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(getattr(function, "__module__", "")), str(name)


def _check_types(name: OpName, outputs: Sequence[str]) -> None:
    for each in outputs:
        try:
            datatype_of(_dtype(each))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"custom operator {name}: outputs={outputs!r}: {error}") from None


def _dtype(kind: str) -> "np.dtype[Any]":
    return bfloat16() if str(kind) == "bfloat16" else np.dtype(kind)
