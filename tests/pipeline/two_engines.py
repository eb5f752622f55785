"""Two engines of the runtime `cuda`, the second of which reads what the first one answers: maps of a few megabytes.

On torch's CPU device for tests anywhere; on a GPU for `tests/gpu` and `benches/device_tensors.py`. Needs torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch

import penstock as ps
from penstock import graph
from penstock.engine.cuda import form
from penstock.engine.cuda.runtime import CudaRuntime
from penstock.engine.engine import Engine
from penstock.graph.lowering import lower
from tests.engine.cuda.engines import TACTIC, of_programs
from tests.quantize.networks import Builder
from tests.serve.calls import Array

CHANNELS: Final = 16


class SaysGpu(torch.Tensor):
    """A tensor on the host that says that it lies on a GPU: the way it takes is that of one that does."""

    def __dlpack_device__(self) -> Any:
        return 2, 0


def says_gpu(array: Array) -> torch.Tensor:
    return torch.from_numpy(array.copy()).as_subclass(SaysGpu)


def picture(size: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((3, size, size)).astype(np.float32)


def maps(size: int) -> ir.Model:
    """A picture to maps of its own size."""
    b = Builder(1)
    first = b.relu(b.conv("x", (3, CHANNELS), "first"))
    return b.model(["n", 3, size, size], b.relu(b.conv(first, (CHANNELS, CHANNELS), "second")),
                   ["n", CHANNELS, size, size])  # fmt: skip


def scores(size: int) -> ir.Model:
    """Maps to ten numbers."""
    b = Builder(2)
    last = b.relu(b.conv(b.relu(b.conv("x", (CHANNELS, 32), "first", stride=4)), (32, 32), "second", stride=2))
    flat = b.node("Flatten", [b.node("GlobalAveragePool", [last], "average")], "flat", axis=1)
    return b.model(["n", CHANNELS, size, size], b.linear(flat, (32, 10), "scores"), ["n", 10])


def engine(
    folder: Path, name: str, model: ir.Model, shape: Sequence[int], buckets: Sequence[int], device: str
) -> Engine:
    """With a program for each bucket of rows of this shape."""
    graph.save(model, folder / f"{name}.onnx")
    loaded = graph.load(folder / f"{name}.onnx")
    at = [{"x": (rows, *shape)} for rows in buckets]
    path = folder / f"{name}.safetensors"
    form.write(path, [(each, *lower(graph.optimize(loaded, shapes=each).model)) for each in at])
    where = torch.device(device)
    programs = [CudaRuntime.compile(path, TACTIC, shapes=each, instances=1, threads=None, device=where) for each in at]
    return of_programs(programs, TACTIC)


def pair(folder: Path, device: str, size: int, buckets: Sequence[int]) -> tuple[Engine, Engine]:
    """What makes maps of pictures, and what makes scores of maps."""
    first = engine(folder, "maps", maps(size), (3, size, size), buckets, device)
    return first, engine(folder, "scores", scores(size), (CHANNELS, size, size), buckets, device)


def hosting(engines: tuple[Engine, Engine], *, instances: int) -> ps.Server:
    """A server of both on a free port, as `detector` and `scorer`; not started."""
    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None)
    for name, engine in zip(("detector", "scorer"), engines, strict=True):
        server.add(engine, name=name, instances=instances)
    return server
