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
from penstock.backends import signature
from penstock.backends.base import Array, check_model_name
from penstock.backends.settings import DynamicBatching
from penstock.backends.signature import Function
from penstock.errors import ExecutionError
from penstock.tensors import TensorType

_DEFAULT_MAX_BATCH: Final = 64  # as for a bare model file on the command line


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
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{getattr(function, '__name__', 'the function')} is async; a model function is called from a thread "
                "and must be an ordinary function; @ps.pipeline takes async ones"
            )
        self.function = function
        update_wrapper(self, function)
        self.name = check_model_name(name if name is not None else signature.own_name(function))
        self.max_batch_size = signature.count("max_batch_size", max_batch_size, 0, limits.MAX_BATCH_SIZE)
        self.instances = signature.count("instances", instances, 1, limits.INSTANCES)
        batch = () if max_batch_size == 0 else (-1,)
        self.inputs = signature.inputs(function, inputs, batch)
        self.outputs = signature.outputs(function, outputs, batch)
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
        run = _one_output(model, names[0]) if len(names) == 1 else _many_outputs(model, names)
        bfloat16 = [spec.name for spec in model.outputs if spec.datatype == "BF16"]
        self.execute = _viewing_bfloat16(run, bfloat16) if bfloat16 else run

    def close(self) -> None:
        """Nothing is held."""


_Run = Callable[[dict[str, Array]], Mapping[str, Array]]


def _one_output(model: ModelFunction, name: str) -> _Run:
    function = model.function

    def execute(inputs: dict[str, Array]) -> Mapping[str, Array]:
        answer = function(**inputs)
        if answer is None:
            raise ExecutionError(f"model {model.name!r} returned nothing (None), expected an array for {name!r}")
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
