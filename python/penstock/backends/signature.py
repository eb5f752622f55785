"""The signature of a Python function as that of a model: its arguments are inputs, what it returns are outputs.

Used by `@ps.model` and `@ps.pipeline`. Everything that can be wrong with a signature is a TypeError here, at
decoration.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from penstock.tensors import TensorSpec, TensorType, tensor_type

Function = Callable[..., Any]
ONLY_OUTPUT: Final = "output"  # what the output is called when only the return annotation declares it


def count(what: str, value: int, low: int, high: int) -> int:
    """The value itself when it is an integer in that range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise TypeError(f"{what}={value!r}: expected an integer from {low} to {high}")
    return value


def own_name(function: Function) -> str:
    """What a model is called when it is given no name."""
    name = getattr(function, "__name__", "")
    if not name.isidentifier():  # a lambda, a partial or a callable object
        raise TypeError(f"{function!r} has no name of its own; pass name=")
    return str(name)


def _signature(function: Function) -> inspect.Signature:
    where = getattr(function, "__name__", "the function")
    try:
        return inspect.signature(function, eval_str=True)
    except NameError as error:
        raise TypeError(
            f"{where}: an annotation names something unknown here ({error}); pass inputs= and outputs="
        ) from error
    except ValueError as error:
        raise TypeError(f"{where} has no readable signature; pass a Python function") from error


def inputs(
    function: Function, declared: Mapping[str, TensorType] | None, batch: tuple[int, ...]
) -> tuple[TensorSpec, ...]:
    """One for each argument; an argument with a default is optional. `batch` is put before each shape."""
    where = getattr(function, "__name__", "the function")
    found: list[TensorSpec] = []
    for parameter in _signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD and declared is not None:
            known = {spec.name for spec in found}
            found += [_spec(where, name, item, batch) for name, item in declared.items() if name not in known]
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{where}: {parameter} can't be an input; inputs are passed by name, one argument each")
        optional = parameter.default is not parameter.empty
        if declared is not None:
            if parameter.name in declared:
                found.append(_spec(where, parameter.name, declared[parameter.name], batch, optional))
            elif not optional:
                raise TypeError(f"{where}: argument {parameter.name!r} is not in inputs=, and it has no default")
            continue
        item = tensor_type(parameter.annotation)
        if item is None:
            raise TypeError(
                f"{where}: argument {parameter.name!r} needs a tensor type such as "
                f"{parameter.name}: ps.F32[16], or inputs="
            )
        found.append(_spec(where, parameter.name, item, batch, optional))
    extra = set(declared or {}) - {spec.name for spec in found}
    if extra:
        raise TypeError(f"{where}: inputs= names {', '.join(sorted(extra))}, which the function does not take")
    if not found:
        raise TypeError(f"{where} has no inputs; a model needs at least one")
    return tuple(found)


def outputs(
    function: Function, declared: Mapping[str, TensorType] | None, batch: tuple[int, ...]
) -> tuple[TensorSpec, ...]:
    """As declared, or the one that the return annotation says."""
    where = getattr(function, "__name__", "the function")
    if declared is None:
        item = tensor_type(_signature(function).return_annotation)
        if item is None:
            raise TypeError(f"{where}: declare what it returns: outputs={{'y': ps.F32[16]}} or -> ps.F32[16]")
        declared = {ONLY_OUTPUT: item}
    if not declared:
        raise TypeError(f"{where}: outputs= is empty; a model needs at least one output")
    return tuple(_spec(where, name, item, batch) for name, item in declared.items())


def _spec(where: str, name: str, item: object, batch: tuple[int, ...], optional: bool = False) -> TensorSpec:
    found = tensor_type(item)
    if found is None:
        raise TypeError(f"{where}: {name!r} is declared as {item!r}, expected a tensor type such as ps.F32[16]")
    return TensorSpec(name, found.datatype, batch + found.shape, optional)
