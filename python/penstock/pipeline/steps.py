"""What the body of a pipeline may say: `use` a model, `cpu` a function, `gather` what runs side by side.

Each belongs to the request whose body says it, which is found by a context variable. So they work in functions that the
body calls, too, and in tasks that it starts.
"""

from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

from penstock.backends.base import check_model_name

if TYPE_CHECKING:
    from penstock.pipeline.run import Run

P = ParamSpec("P")
T = TypeVar("T")

CURRENT: Final[ContextVar["Run"]] = ContextVar("penstock_pipeline_run")


class Named(Protocol):
    """A `@ps.model` function or a pipeline."""

    @property
    def name(self) -> str: ...


class Use:
    """A model of the server that runs the pipeline, by its name. Made by `use`."""

    __slots__ = ("leaves_on_device", "name", "version")

    def __init__(self, name: str, version: str | None, *, leaves_on_device: bool = False) -> None:
        self.name = name
        self.version = version
        self.leaves_on_device = leaves_on_device

    @property
    def on_device(self) -> "Use":
        """The same model, whose answers stay on its GPU: `await detect.on_device(image)` gives a torch tensor.

        The tensor is written when it is there, belongs to the caller, and may be passed to further calls and, in `cpu`
        steps, to functions of torch. Rows of one batch share an allocation, which is freed with the last of them. Calls
        raise Unsupported for models that don't run on a GPU alone, and ResourceExhausted when it has no memory left.
        """
        return Use(self.name, self.version, leaves_on_device=True)

    def __call__(self, *args: Any, **kwargs: Any) -> "Awaitable[Any]":
        """Call it with one row: arrays without the batch dimension, in the order of its inputs or by name.

        The call is made at once and joins the batches of the model; awaiting it gives the output without the batch
        dimension, or a dict when there are several. Arrays must not be changed before that; answers are read-only.
        A tensor on a GPU goes to a model there without crossing the host, behind what this thread has enqueued on
        torch's current stream; for a model on the CPU it is copied.
        Raises what a client would get: InvalidArgument for shapes that don't fit, NotFound, Unavailable when the
        queue is full.
        """
        return _run(f"model {self.name!r}").call(self, True, args, kwargs)

    def batch(self, *args: Any, **kwargs: Any) -> "Awaitable[Any]":
        """As a call, for several rows: arrays have the batch dimension, and so has what comes back."""
        return _run(f"model {self.name!r}").call(self, False, args, kwargs)

    def __repr__(self) -> str:
        version = "" if self.version is None else f", version={self.version}"
        return f"penstock.use({self.name!r}{version}){'.on_device' if self.leaves_on_device else ''}"


def use(model: str | Named, *, version: int | None = None) -> Use:
    """A model of the server, to be called in the bodies of pipelines.

    model     its name, or the `@ps.model` function or pipeline that has the name. What is in service under it is looked
              up at each call, so a model may be added later, and reloaded.
    version   None: the latest.

    Raises InvalidArgument for text that can't be a name.
    """
    name = check_model_name(model if isinstance(model, str) else model.name)
    return Use(name, None if version is None else str(version))


def cpu(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
    """Call an ordinary function in a thread, so that the event loop goes on: decoding, resizing, contours, crops.

    Or on the GPU, by torch: every thread's current stream is the device's default one, so what a function enqueues
    comes before the calls that are given its tensors, and it need not wait for it.

    There are as many threads as cores, for all pipelines of the server. A step that was not begun when its request
    ends is never begun; one that runs, runs to its end.
    """
    return _run("a cpu step").cpu(function, args, kwargs)


async def gather(awaitables: Iterable[Awaitable[T]], /) -> list[T]:
    """Wait for all of them side by side; their results in order.

    The first failure cancels the others, waits until they have ended, and is raised.
    """
    import asyncio

    running: list[asyncio.Future[T]] = []
    try:
        for awaitable in awaitables:
            running.append(asyncio.ensure_future(awaitable))
        return list(await asyncio.gather(*running))
    except BaseException:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise


def _run(what: str) -> "Run":
    try:
        return CURRENT.get()
    except LookupError:
        raise RuntimeError(
            f"{what} was called outside of a pipeline that a server runs; add the pipeline to a ps.Server and send "
            "it a request"
        ) from None
