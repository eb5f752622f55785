"""One file per library that can execute a model; each is imported when a model of its kind is loaded.

`compile` makes a runtime from a model file and a tactic, `reopen` from what its `export` wrote. A model that is cut
around custom operators becomes a chain of such runtimes. Libraries are imported inside, so that importing this costs
nothing.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from penstock.engine.plan import CUDA, TUNED_STEPS, Shapes, Tactic
from penstock.engine.runtimes import settings
from penstock.engine.runtimes.base import Compiled, Shelf
from penstock.errors import InvalidArgument, ModelLoadError, NotFound

LIBRARIES: Final = ("onnxruntime", "openvino")
"""That run whole models on the CPU."""

PACKAGES: Final[Mapping[str, str]] = {"onnxruntime": "onnxruntime", "openvino": "openvino", CUDA: "torch"}
"""Runtime -> the package it needs."""


def compile(  # noqa: A001  the word for it
    path: Path,
    tactic: Tactic,
    *,
    shapes: Shapes | None = None,
    instances: int = 1,
    threads: int | None = None,
) -> Compiled:
    """Compile a model file as a tactic says.

    shapes     the shapes of every input for a static tactic; None: any that the model takes.
    instances  calls that will run at once; they share the weights.
    threads    threads of each instance; None: the tactic's, or the usable cores divided among the instances.

    Raises NotFound (no such file), ModelLoadError (the library can't, or is not installed), Unsupported (the library or
    this processor has no such precision) and InvalidArgument (no such library or option).
    """
    if tactic.shapes == "static" and not shapes:
        raise InvalidArgument(f"{path.name}: tactic {tactic.name!r} is static; say for which shapes")
    if not path.is_file():
        raise NotFound(f"model file {path.name!r} does not exist")
    library = _class(tactic, path.name)

    def one(file: Path, bound: Shapes | None) -> Compiled:
        made: Compiled = library.compile(file, tactic, shapes=bound, instances=instances, threads=threads)
        return made

    # They know this package's base, so they come after it.
    from penstock.engine import parts
    from penstock.engine.runtimes import chained

    if parts.beside(path) is not None:
        return chained.compile(path, tactic, shapes, one)
    return one(path, shapes)


def reopen(
    artifact: memoryview,
    tactic: Tactic,
    *,
    output_names: tuple[str, ...],
    name: str,
    instances: int = 1,
    threads: int | None = None,
    shelf: Shelf | None = None,
) -> Compiled:
    """Load what a runtime's `export` wrote: on a machine and with a library that are the same, without optimising anew.

    artifact      stays in use as long as the runtime.
    output_names  in the order of the model; artifacts may lose them.
    name          what messages call it.
    shelf         what programs of one engine share; needed by those for a GPU.

    Raises ModelLoadError and InvalidArgument as `compile` does. An artifact may hold native code: whoever calls has
    checked where it comes from.
    """
    library = _class(tactic, name)
    if tactic.runtime == CUDA:
        program: Compiled = library.reopen(
            artifact, tactic, output_names, name, instances=instances, threads=threads, shelf=shelf
        )
        return program

    def one(data: memoryview, outputs: tuple[str, ...], title: str) -> Compiled:
        made: Compiled = library.reopen(data, tactic, outputs, title, instances=instances, threads=threads)
        return made

    from penstock.engine.runtimes import chained

    if chained.is_chain(artifact):
        return chained.reopen(artifact, tactic, name, one)
    return one(artifact, output_names, name)


def prepare(tactic: Tactic, path: Path | None = None) -> None:
    """Import what a tactic needs, where it is installed, and start what it can do before it is asked to.

    path  of the model, where it is there already.
    """
    with contextlib.suppress(ModelLoadError, InvalidArgument):  # compiling says what is wrong
        if tactic.runtime == CUDA and tactic.options == TUNED_STEPS and path is not None:
            importlib.import_module("penstock.engine.cuda.tuning").expect(path)
        library = _class(tactic, tactic.runtime)
        if tactic.runtime == CUDA:
            library.prepare(tactic, path)


def features() -> Mapping[str, tuple[str, ...]]:
    """Precisions that each installed library computes in on this processor, narrow ones first; imports them."""
    return {
        name: tuple(importlib.import_module(f"penstock.engine.runtimes.{name}").features())
        for name in LIBRARIES
        if importlib.util.find_spec(name) is not None
    }


def providers() -> tuple[str, ...]:
    """Of the installed ONNX Runtime, those for a GPU."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    from penstock.engine.runtimes import onnxruntime_gpu

    return onnxruntime_gpu.available()


def _class(tactic: Tactic, name: str) -> Any:
    runtime = tactic.runtime
    try:
        if settings.on_gpu(tactic):
            from penstock.engine.runtimes import onnxruntime_gpu

            return onnxruntime_gpu.OnnxRuntimeOnGpu
        if runtime == "onnxruntime":
            from penstock.engine.runtimes import onnxruntime as module

            return module.OnnxRuntime
        if runtime == "openvino":
            from penstock.engine.runtimes import openvino

            return openvino.OpenVinoRuntime
        if runtime == CUDA:
            from penstock.engine.cuda.runtime import CudaRuntime

            return CudaRuntime
    except ImportError as error:
        raise ModelLoadError(
            f"{name}: the library of runtime {runtime!r} is not usable here ({error}); pip install {PACKAGES[runtime]}"
        ) from error
    raise InvalidArgument(f"{name}: unknown runtime {runtime!r}, expected one of {', '.join(PACKAGES)}")
