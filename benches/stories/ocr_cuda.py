"""The recogniser on a GPU, in a process of its own: ONNX Runtime's CUDA provider as it is, or our engine.

`prepare`, on a machine with the model, writes what the machine with the GPU needs: the lines, the ONNX file, and the
model as steps for a GPU. There `python -m benches.stories.ocr_cuda WAY` serves one way until it is told to end. Needs
torch there, and onnxruntime-gpu for the ways that are not the engine; nothing is fetched.
"""

import argparse
import queue
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import penstock as ps
from benches.stories.ocr_lines import HEIGHT, INDEX, INPUT, VALUE, WIDTH, rendered, saved
from benches.stories.ocr_models import CLIENT_ROWS, GPU_BATCHES, MODEL, onnx_file

ENGINE: Final = "engine"
ONNXRUNTIME: Final = "onnxruntime"
FORM: Final = "recogniser.form"
_COLUMNS: Final = WIDTH // 8
_ROW: Final = (HEIGHT, WIDTH, 3)

Arrays = Mapping[str, NDArray[Any]]
Pictures = NDArray[np.uint8]


def prepare(folder: Path) -> list[str]:
    """Writes the folder that travels; a line for each file of it."""
    from penstock import graph
    from penstock.engine.cuda import form
    from penstock.graph import optimize
    from penstock.graph.lowering import SUPPORTED, lower

    model = graph.load(onnx_file(folder))
    rendered().save(folder)
    entries = []
    for batch in GPU_BATCHES:
        shapes = {INPUT: (batch, *_ROW)}
        steps, weights = lower(optimize(model, shapes=shapes, known=SUPPORTED).model)
        entries.append((shapes, steps, weights))
        print(f"batch {batch}: {len(steps.steps)} steps", file=sys.stderr, flush=True)
    form.write(folder / FORM, entries)
    return [f"{each.name}: {each.stat().st_size / 2**20:.1f} MiB" for each in sorted(folder.iterdir())]


def missing(device: str) -> str:
    """Why ONNX Runtime can't be measured here; empty where it can."""
    try:
        import torch  # noqa: F401 - brings the libraries that the provider wants
        import onnxruntime  # isort: skip
    except ImportError as error:
        return str(error)
    wanted = _provider(device)
    there = onnxruntime.get_available_providers()
    return "" if wanted in there else f"onnxruntime {onnxruntime.__version__} has no {wanted}"


def _provider(device: str) -> str:
    return "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"


# ---- what is served ----


def plain(folder: Path, device: str, instances: int, most_rows: int) -> ps.ModelFunction:
    """ONNX Runtime in FP32 by its defaults.

    An instance has a session for each size of a batch, each of which has met its own before it is served, and fills
    batches up to them: a session whose shapes change searches its convolutions anew, for seconds.
    """
    import torch  # noqa: F401
    import onnxruntime  # isort: skip

    pictures = saved(folder).pictures
    sizes = [size for size in GPU_BATCHES if CLIENT_ROWS <= size <= most_rows]
    idle: queue.SimpleQueue[dict[int, Any]] = queue.SimpleQueue()
    for _ in range(instances):
        sessions = {}
        for size in sizes:
            session = onnxruntime.InferenceSession(str(folder / f"{MODEL}.onnx"), providers=[_provider(device)])
            if _provider(device) not in session.get_providers():
                raise RuntimeError(f"onnxruntime does not start its {_provider(device)}: see above")
            session.run(None, {INPUT: pictures[:size]})
            sessions[size] = session
        idle.put(sessions)

    def recognise(x: Pictures) -> Arrays:
        size = next(each for each in sizes if each >= len(x))
        filled = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)]) if size > len(x) else x
        sessions = idle.get()
        try:
            found = sessions[size].run([INDEX, VALUE], {INPUT: filled})
        finally:
            idle.put(sessions)
        return {name: each[: len(x)] for name, each in zip((INDEX, VALUE), found, strict=True)}

    return ps.model(
        name=MODEL, max_batch_size=most_rows, instances=instances,
        inputs={INPUT: ps.U8[_ROW]}, outputs={INDEX: ps.I64[_COLUMNS], VALUE: ps.F32[_COLUMNS]},
    )(recognise)  # fmt: skip


def built(folder: Path, device: str, seconds: float, contexts: int, most_rows: int) -> Any:
    """The engine in FP16 (on `cpu` FP32, to try the script), tuned here; answers are compared with FP32's."""
    import torch

    from benches.gpu.assembled import assembled
    from penstock.engine.cuda.runtime import CudaRuntime
    from penstock.engine.plan import Tactic

    where = torch.device("cuda:0" if device == "cuda" else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / FORM
        path.write_bytes((folder / FORM).read_bytes())
        batches = [each for each in GPU_BATCHES if each <= most_rows]
        made = assembled(path, MODEL, _ROW, batches, where, seconds, contexts)
        batch = min(batches)
        pictures = saved(folder).pictures[:batch]
        reference = Tactic("cuda", "fp32", "lowered", "static", options=(("steps", "plain"),))
        right = CudaRuntime.compile(
            path, reference, shapes={INPUT: (batch, *_ROW)}, instances=1, threads=None, device=where
        )
        expected, found = right(x=pictures), made.engine(x=pictures)
        right.close()
    error = float(np.linalg.norm(found[VALUE] - expected[VALUE]) / np.linalg.norm(expected[VALUE]))
    print(f"error of probabilities against FP32: {error:.1e}", file=sys.stderr, flush=True)
    if not error < 0.02:
        raise RuntimeError(f"the engine's probabilities are off by {error:.1e}")
    return made.engine


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("way", choices=[ENGINE, ONNXRUNTIME])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--instances", type=int, default=1, help="for the engine: contexts")
    parser.add_argument("--most-rows", type=int, default=max(GPU_BATCHES))
    parser.add_argument("--tune-seconds", type=float, default=15.0)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args(words)
    server = ps.Server(http_port=options.http_port, grpc_port=None, metrics_port=None)
    if options.way == ENGINE:
        served = built(options.folder, options.device, options.tune_seconds, options.instances, options.most_rows)
        server.add(served, name=MODEL, instances=options.instances)
    else:
        server.add(plain(options.folder, options.device, options.instances, options.most_rows))
    server.run()


if __name__ == "__main__":
    main()
