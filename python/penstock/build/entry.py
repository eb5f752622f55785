"""What users call: settings as they write them, a model as they have it, and an engine out.

Called as `penstock.build` and by `penstock build`; the steps are the driver's.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from penstock.build import target, torch_export
from penstock.build.driver import Build
from penstock.build.gate import Gate
from penstock.build.options import BuildOptions
from penstock.build.progress import Progress, Silent
from penstock.build.shapes import Asked
from penstock.engine import Engine
from penstock.engine.archive import check_place
from penstock.engine.engine import checked_name
from penstock.errors import InvalidArgument

Arrays = Mapping[str, NDArray[Any]]


def build(
    model: str | Path | Any,
    *,
    output: str | Path | None = None,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    precision: str = "auto",
    device: str = "auto",
    shapes: Asked | Sequence[Asked] | None = None,
    buckets: str | Sequence[int] | None = None,
    calibration: str | Path | Iterable[Arrays] | None = None,
    accuracy: str | Gate | None = None,
    budget_seconds: float | None = None,
    timing_cache: str | Path | None = None,
    workspace_bytes: int | None = None,
    preprocess: str | Sequence[str] = (),
    reduce: str | Sequence[str] = (),
    custom_ops: str | Sequence[str] = (),
    contexts: int = 1,
    progress: Progress | None = None,
) -> Engine:
    """Build the fastest engine for this machine that stays inside an accuracy budget.

    model            an ONNX file, or a torch module with `example_inputs` (a tensor for each input).
    output           where the engine is written; None: it lives in memory only, until `engine.save`.
    device           `auto` (the first NVIDIA GPU that torch can drive, else the CPU), `cpu` or `cuda:N`.
    precision        `auto`, or the narrowest of int8, fp8, fp16, bf16, tf32, fp32 that may be used.
    shapes           as `--shapes` (min, opt, max per input); several for several profiles; None: the signature says.
    buckets          batch sizes that are timed and prepared; None: min, opt and max.
    calibration      .npz, folder, `module:function` or inputs; without it there is no INT8.
    accuracy         `ps.Cosine(0.999)` (the default), `ps.Metric(...)`, or as `--accuracy`.
    budget_seconds   time for everything; a safe engine exists after seconds, the rest makes it faster.
    timing_cache     file that keeps timings between builds.
    workspace_bytes  what the engine's programs may hold together.
    preprocess       as `--preprocess`, folded into the engine; reduce: as `--reduce`.
    custom_ops       modules (or `module:function`) that register custom operators; not needed where they are imported.
    contexts         that will compute at once on a GPU; short kernels are chosen for so many.

    Raises NotFound, ModelLoadError (the model), InvalidArgument (the settings), Unsupported (this machine), and
    AccuracyError when nothing that runs passes the gate.
    """
    if output is not None:
        check_place(checked_name(output))
    options = BuildOptions.of(
        precision=precision, device=device, shapes=shapes, buckets=buckets, calibration=calibration, accuracy=accuracy,
        budget_seconds=budget_seconds, timing_cache=timing_cache, workspace_bytes=workspace_bytes,
        preprocess=preprocess, reduce=reduce, custom_ops=custom_ops, contexts=contexts,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="penstock-build-") as name:
        folder = Path(name)
        path = _onnx(model, folder, example_inputs)
        with target.on(target.target(options.device)):
            made = Build(path, folder, options, progress or Silent()).run()
        if output is not None:
            made.save(output)
        return made


def _onnx(model: str | Path | Any, folder: Path, example_inputs: Sequence[Any] | Mapping[str, Any] | None) -> Path:
    if isinstance(model, str | Path):
        return Path(model)
    if not torch_export.is_module(model):
        raise InvalidArgument(f"expected a path or a torch module to build, got {type(model).__name__}")
    path = folder / f"{type(model).__name__}.onnx"
    torch_export.export(model, path, example_inputs, free_batch=True)
    return path
