"""Engines and runtimes: what executes a model on this machine. `load` is the whole public face.

The builder times these runtimes, backends run them; nothing here knows of requests, batches or repositories.
Libraries are imported when one of their models is loaded, not before.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.engine.check import Verdict, check
from penstock.engine.custom import custom_op, import_ops
from penstock.engine.engine import ENGINE_SUFFIX, Engine, EngineContext, open_engine
from penstock.engine.runtimes.base import Runtime, RuntimeInstance
from penstock.errors import InvalidArgument, ModelLoadError, NotFound

__all__ = [
    "ENGINE_SUFFIX",
    "RUNTIMES",
    "Engine",
    "EngineContext",
    "Runtime",
    "RuntimeInstance",
    "Verdict",
    "check",
    "custom_op",
    "import_ops",
    "load",
    "open_engine",
]


def _onnxruntime(path: Path, instances: int, threads: int | None) -> Runtime:
    from penstock.engine.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime.load(path, instances=instances, threads=threads)


def _openvino(path: Path, instances: int, threads: int | None) -> Runtime:
    from penstock.engine.runtimes.openvino import OpenVinoRuntime

    return OpenVinoRuntime.load(path, instances=instances, threads=threads)


RUNTIMES: dict[str, Callable[[Path, int, int | None], Runtime]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def load(
    path: str | Path,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    instances: int = 1,
    memory_bytes: int | None = None,
    custom_ops: str | Sequence[str] = (),
) -> Runtime:
    """Load an engine, or a model file into a bare runtime that computes in FP32: `load("m.onnx")(x=array)["y"]`.

    An engine (.engine) is run, compiled anew for this machine, or refused, as `check` says.

    runtime       for model files: "onnxruntime" (.onnx; the default) or "openvino" (.onnx, .xml).
    threads       threads of each instance; None divides the usable cores among the instances.
    instances     calls that will run at once; they share the weights. More calls work and share threads.
    memory_bytes  for engines: what the programs may hold together; those that don't fit are done without.
    custom_ops    for engines: modules, or `module:function`, that register the custom operators in it. They are
                  imported, their code runs; an engine never imports anything by itself.

    Raises NotFound (no such file), ModelLoadError (it can't be loaded), InvalidArgument (bad settings),
    ResourceExhausted (the engine needs more memory than it may have).
    """
    path = Path(path)
    if path.suffix == ENGINE_SUFFIX and runtime is not None:
        raise InvalidArgument(f"{path.name} is an engine and brings its own libraries; leave runtime={runtime!r} out")
    if path.suffix != ENGINE_SUFFIX and custom_ops:
        raise InvalidArgument(f"{path.name} is no engine: libraries can't call Python functions; build one first")
    runtime = runtime or "onnxruntime"
    loader = RUNTIMES.get(runtime)
    if loader is None:
        raise InvalidArgument(f"unknown runtime {runtime!r}, expected one of {', '.join(RUNTIMES)}")
    if instances < 1 or (threads is not None and threads < 1):
        raise InvalidArgument(f"{path.name}: expected at least 1 instance and 1 thread, got {instances} and {threads}")
    if not path.is_file():
        what = "engine" if path.suffix == ENGINE_SUFFIX else "model file"
        if path.is_dir():
            raise ModelLoadError(f"{path.name!r} is a directory, expected the name of an engine or a model file")
        raise NotFound(f"{what} {path.name!r} does not exist")
    if path.suffix == ENGINE_SUFFIX:
        for each in (custom_ops,) if isinstance(custom_ops, str) else custom_ops:
            import_ops(each)
        return open_engine(path, instances=instances, threads=threads, memory_bytes=memory_bytes)
    try:
        return loader(path, instances, threads)
    except ImportError as error:
        raise ModelLoadError(
            f"{path.name}: the library of runtime {runtime!r} is not usable here ({error}); pip install {runtime}"
        ) from error
