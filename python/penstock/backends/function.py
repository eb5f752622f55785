"""Python functions as models: `@ps.model` and the backend behind it.

    @ps.model(name="double", max_batch_size=64, outputs={"y": ps.F32[16]})
    def double(x: ps.F32[16]):
        return x * 2

The function is always called with a batch: arrays have the batch dimension first, unless max_batch_size is 0. It
returns an array (one output) or a dict of arrays. An argument with a default is an optional input. Instances are
threads that call the one function at once, so it must be safe to call from several threads when instances > 1.
The decorated function stays an ordinary callable. Everything that can be wrong with a signature is a TypeError here,
at decoration, never at the first request.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import Any, Final, overload

from penstock import limits
from penstock.backends.base import Array, check_model_name
from penstock.backends.settings import DynamicBatching
from penstock.errors import ExecutionError
from penstock.tensors import TensorSpec, TensorType, tensor_type

Function = Callable[..., Any]
_DEFAULT_MAX_BATCH: Final = 64  # as for a bare model file on the command line
_ONLY_OUTPUT: Final = "output"  # what the output is called when only the return annotation declares it


class ModelFunction:
    """A function with a tensor signature (full shapes) and serving settings. Made by `model`."""

    def __init__(
        self,
        function: Function,
        *,
        name: str | None,
        max_batch_size: int,
        instances: int,
        inputs: Mapping[str, TensorType] | None,
        outputs: Mapping[str, TensorType] | None,
        parameters: Mapping[str, str] | None,
        padding: Mapping[str, Any] | None,
        dynamic_batching: DynamicBatching | None,
    ) -> None:
        self.function = function
        update_wrapper(self, function)
        self.name = check_model_name(name if name is not None else _own_name(function))
        self.max_batch_size = _count("max_batch_size", max_batch_size, 0, limits.MAX_BATCH_SIZE)
        self.instances = _count("instances", instances, 1, limits.INSTANCES)
        batch = () if max_batch_size == 0 else (-1,)
        self.inputs = _inputs(function, inputs, batch)
        self.outputs = _outputs(function, outputs, batch)
        self.parameters = dict(parameters or {})
        self.padding = padding
        self.dynamic_batching = dynamic_batching

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class FunctionBackend:
    """A model function as a backend; each instance is one more thread that calls it."""

    name = "python"
    platform = "python"
    fresh_outputs = False  # a function may return what it keeps

    def __init__(self, model: ModelFunction) -> None:
        self._model = model
        self.inputs = model.inputs
        self.outputs = model.outputs

    def instance(self, index: int, count: int, threads: int | None) -> "FunctionInstance":
        return FunctionInstance(self._model)

    def close(self) -> None:
        """A function holds nothing."""


class FunctionInstance:
    """Calls the function; `execute` is a closure, so that a batch costs one Python call more than the function."""

    __slots__ = ("execute",)

    def __init__(self, model: ModelFunction) -> None:
        self.execute: Callable[[dict[str, Array]], Mapping[str, Array]]
        names = [spec.name for spec in model.outputs]
        run = _one_output(model.function, names[0]) if len(names) == 1 else _many_outputs(model, names)
        bfloat16 = [spec.name for spec in model.outputs if spec.datatype == "BF16"]
        self.execute = _viewing_bfloat16(run, bfloat16) if bfloat16 else run

    def close(self) -> None:
        """Nothing is held."""


_Run = Callable[[dict[str, Array]], Mapping[str, Array]]


def _one_output(function: Function, name: str) -> _Run:
    def execute(inputs: dict[str, Array]) -> Mapping[str, Array]:
        answer = function(**inputs)
        return answer if isinstance(answer, dict) else {name: answer}

    return execute


def _many_outputs(model: ModelFunction, names: list[str]) -> _Run:
    function = model.function

    def execute(inputs: dict[str, Array]) -> Mapping[str, Array]:
        answer = function(**inputs)
        if isinstance(answer, dict):
            return answer
        raise ExecutionError(
            f"model {model.name!r} returned {type(answer).__name__}, expected a dict with {', '.join(names)}"
        )

    return execute


def _viewing_bfloat16(run: _Run, names: list[str]) -> _Run:
    """Arrays of ml_dtypes.bfloat16 leave as the 16-bit words that BF16 travels as."""

    def execute(inputs: dict[str, Array]) -> Mapping[str, Array]:
        answer = dict(run(inputs))
        for name in names:
            array = answer.get(name)
            if getattr(array, "dtype", None) is not None and array is not None and array.dtype.name == "bfloat16":
                answer[name] = array.view("uint16")
        return answer

    return execute


@overload
def model(function: Function, /) -> ModelFunction: ...


@overload
def model(
    *,
    name: str | None = None,
    max_batch_size: int = _DEFAULT_MAX_BATCH,
    instances: int = 1,
    inputs: Mapping[str, TensorType] | None = None,
    outputs: Mapping[str, TensorType] | None = None,
    parameters: Mapping[str, str] | None = None,
    padding: Mapping[str, Any] | None = None,
    dynamic_batching: DynamicBatching | None = None,
) -> Callable[[Function], ModelFunction]: ...


def model(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    max_batch_size: int = _DEFAULT_MAX_BATCH,
    instances: int = 1,
    inputs: Mapping[str, TensorType] | None = None,
    outputs: Mapping[str, TensorType] | None = None,
    parameters: Mapping[str, str] | None = None,
    padding: Mapping[str, Any] | None = None,
    dynamic_batching: DynamicBatching | None = None,
) -> ModelFunction | Callable[[Function], ModelFunction]:
    """Make a function a model.

    name              how clients call it; the function's own name by default.
    max_batch_size    rows of the largest batch; 0: no batch dimension, one call per request.
    instances         threads that call the function at once.
    inputs, outputs   {name: tensor type without the batch dimension}; by default from the annotations of the
                      arguments and of the return value, whose output is then called "output".
    parameters        free-form settings, shown in the configuration.
    padding           lets inputs of near shapes share a batch, such as
                      {"inputs": {"x": {"axis": 3, "multiple": 32, "value": 0}},
                       "outputs": {"y": {"axis": 1, "divisor": 8}}}; axes count the batch dimension.
    dynamic_batching  a fixed batching policy; None: automatic.

    Raises TypeError for a signature that can't be served, InvalidArgument for a bad name.
    """

    def decorate(function: Function) -> ModelFunction:
        return ModelFunction(
            function,
            name=name,
            max_batch_size=max_batch_size,
            instances=instances,
            inputs=inputs,
            outputs=outputs,
            parameters=parameters,
            padding=padding,
            dynamic_batching=dynamic_batching,
        )

    return decorate if function is None else decorate(function)


def _count(what: str, value: int, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise TypeError(f"{what}={value!r}: expected an integer from {low} to {high}")
    return value


def _own_name(function: Function) -> str:
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


def _inputs(
    function: Function, declared: Mapping[str, TensorType] | None, batch: tuple[int, ...]
) -> tuple[TensorSpec, ...]:
    where = getattr(function, "__name__", "the function")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{where} is async; a model function is called from a thread and must be an ordinary function")
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


def _outputs(
    function: Function, declared: Mapping[str, TensorType] | None, batch: tuple[int, ...]
) -> tuple[TensorSpec, ...]:
    where = getattr(function, "__name__", "the function")
    if declared is None:
        item = tensor_type(_signature(function).return_annotation)
        if item is None:
            raise TypeError(f"{where}: declare what it returns: outputs={{'y': ps.F32[16]}} or -> ps.F32[16]")
        declared = {_ONLY_OUTPUT: item}
    if not declared:
        raise TypeError(f"{where}: outputs= is empty; a model needs at least one output")
    return tuple(_spec(where, name, item, batch) for name, item in declared.items())


def _spec(where: str, name: str, item: object, batch: tuple[int, ...], optional: bool = False) -> TensorSpec:
    found = tensor_type(item)
    if found is None:
        raise TypeError(f"{where}: {name!r} is declared as {item!r}, expected a tensor type such as ps.F32[16]")
    return TensorSpec(name, found.datatype, batch + found.shape, optional)
