"""`@ps.pipeline`: an async function with a tensor signature.

    detect, recognise = ps.use("detector"), ps.use("recogniser")

    @ps.pipeline
    async def read(image: ps.U8[-1, -1, 3]) -> ps.Bytes[-1]:
        boxes = await detect(image)
        crops = await ps.cpu(crop, image, boxes)
        return await ps.gather(recognise(c) for c in crops)

The decorated function stays callable: `await read(image)` runs the body where it stands, which is how one pipeline uses
another as a part of itself. Everything that can be wrong with a signature is a TypeError here, at decoration.
"""

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Final, overload

from penstock import limits
from penstock.backends import signature
from penstock.backends.base import check_model_name
from penstock.tensors import TensorType

if TYPE_CHECKING:
    from penstock.repository import Model

Body = Callable[..., Coroutine[Any, Any, Any]]

# Requests that are under way hold their inputs and what came of them in memory; further ones wait in the queue, which
# is bounded by bytes. Enough to fill batches of 64 from requests that call a model once.
_DEFAULT_CONCURRENCY: Final = 64


class Pipeline:
    """An async function with a tensor signature. Made by `pipeline`, served by `Server.add`."""

    def __init__(
        self,
        function: Body,
        *,
        name: str | None,
        inputs: Mapping[str, TensorType] | None,
        outputs: Mapping[str, TensorType] | None,
        max_concurrency: int,
    ) -> None:
        if not inspect.iscoroutinefunction(function):
            where = getattr(function, "__name__", "the function")
            raise TypeError(f"{where} is not async; a pipeline is an `async def`, an ordinary function is a @ps.model")
        self.function = function
        update_wrapper(self, function)
        self.name = check_model_name(name if name is not None else signature.own_name(function))
        self.max_concurrency = signature.count("max_concurrency", max_concurrency, 1, limits.QUEUE_REQUESTS)
        self.inputs = signature.inputs(function, inputs, ())
        self.outputs = signature.outputs(function, outputs, ())

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        return self.function(*args, **kwargs)

    def served(self) -> "list[Model]":
        """As a server runs it: one version, without a batch dimension."""
        from penstock.pipeline.backend import model_of

        return [model_of(self)]


@overload
def pipeline(function: Body, /) -> Pipeline: ...


@overload
def pipeline(
    *,
    name: str | None = None,
    inputs: Mapping[str, TensorType] | None = None,
    outputs: Mapping[str, TensorType] | None = None,
    max_concurrency: int = _DEFAULT_CONCURRENCY,
) -> Callable[[Body], Pipeline]: ...


def pipeline(
    function: Body | None = None,
    /,
    *,
    name: str | None = None,
    inputs: Mapping[str, TensorType] | None = None,
    outputs: Mapping[str, TensorType] | None = None,
    max_concurrency: int = _DEFAULT_CONCURRENCY,
) -> Pipeline | Callable[[Body], Pipeline]:
    """Make an async function a pipeline.

    name              how clients call it; the function's own name by default.
    inputs, outputs   {name: tensor type}; by default from the annotations of the arguments and of the return value,
                      whose output is then called "output". Shapes are whole: there is no batch dimension.
    max_concurrency   requests that are under way at once; others wait in the pipeline's queue.

    The function gets arrays by name and returns an array, a list (of bytes, text, numbers, or arrays of one shape)
    or, for several outputs, a dict of them. Raises TypeError for a signature that can't be served, InvalidArgument
    for a bad name.
    """

    def decorate(function: Body) -> Pipeline:
        return Pipeline(function, name=name, inputs=inputs, outputs=outputs, max_concurrency=max_concurrency)

    return decorate if function is None else decorate(function)
