"""Engines and runtimes: what executes a model on this machine. `load` is the whole public face.

The builder times these runtimes, backends run them; nothing here knows of requests, batches or repositories.
Libraries are imported when one of their models is loaded, not before.
"""

from collections.abc import Callable
from pathlib import Path

from penstock.engine.runtimes.base import Runtime, RuntimeInstance
from penstock.errors import InvalidArgument, ModelLoadError, NotFound

__all__ = ["RUNTIMES", "Runtime", "RuntimeInstance", "load"]


def _onnxruntime(path: Path, instances: int, threads: int | None) -> Runtime:
    from penstock.engine.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime.load(path, instances=instances, threads=threads)


def _openvino(path: Path, instances: int, threads: int | None) -> Runtime:
    from penstock.engine.runtimes.openvino import OpenVinoRuntime

    return OpenVinoRuntime.load(path, instances=instances, threads=threads)


RUNTIMES: dict[str, Callable[[Path, int, int | None], Runtime]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def load(path: str | Path, *, runtime: str = "onnxruntime", threads: int | None = None, instances: int = 1) -> Runtime:
    """Load a model file into a bare runtime that computes in FP32 on the CPU: `load("m.onnx")(x=array)["y"]`.

    runtime    "onnxruntime" (.onnx) or "openvino" (.onnx, .xml).
    threads    threads of each instance; None divides the usable cores among the instances.
    instances  calls that will run at once; they share the weights. More calls work and share threads.

    Raises NotFound (no such file), ModelLoadError (it can't be loaded), InvalidArgument (bad settings).
    """
    path = Path(path)
    loader = RUNTIMES.get(runtime)
    if loader is None:
        raise InvalidArgument(f"unknown runtime {runtime!r}, expected one of {', '.join(RUNTIMES)}")
    if instances < 1 or (threads is not None and threads < 1):
        raise InvalidArgument(f"{path.name}: expected at least 1 instance and 1 thread, got {instances} and {threads}")
    if not path.is_file():
        raise NotFound(f"model file {path.name!r} does not exist")
    try:
        return loader(path, instances, threads)
    except ImportError as error:
        raise ModelLoadError(
            f"{path.name}: the library of runtime {runtime!r} is not usable here ({error}); pip install {runtime}"
        ) from error
