"""A small network as programs of the runtime `cuda`, and an engine of them that was never a file. Needs torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from penstock import graph
from penstock.engine import fingerprint
from penstock.engine.cuda import form
from penstock.engine.cuda.runtime import CudaRuntime
from penstock.engine.engine import Engine
from penstock.engine.plan import Bucket, Manifest, Profile, Program, Tactic
from penstock.engine.sealed import Sealed
from penstock.graph.lowering import lower
from penstock.tensors import TensorSpec
from tests.quantize import networks

TACTIC: Final = Tactic("cuda", "fp32", "lowered", "static", options=(("steps", "plain"),))
BUCKETS: Final = (1, 4)
PICTURE: Final = (3, 64, 64)


def written(folder: Path) -> Path:
    """The form of the network at both buckets."""
    graph.save(networks.residual(), folder / "m.onnx")
    model = graph.load(folder / "m.onnx")
    at = [{"x": (rows, *PICTURE)} for rows in BUCKETS]
    form.write(folder / "m.safetensors", [(each, *lower(graph.optimize(model, shapes=each).model)) for each in at])
    return folder / "m.safetensors"


def compiled(path: Path, rows: int | None, device: str = "cpu") -> CudaRuntime:
    shapes = {"x": (rows, *PICTURE)} if rows is not None else None
    return CudaRuntime.compile(path, TACTIC, shapes=shapes, instances=1, threads=None, device=torch.device(device))


def of_programs(programs: Sequence[CudaRuntime], tactic: Tactic) -> Engine:
    """Buckets of which each larger one costs next to nothing more."""
    shapes = [{spec.name: spec.shape for spec in program.inputs} for program in programs]
    ends = [
        tuple(TensorSpec(each.name, each.datatype, (-1, *each.shape[1:])) for each in specs)
        for specs in (programs[0].inputs, programs[0].outputs)
    ]
    manifest = Manifest(
        name="m", inputs=ends[0], outputs=ends[1], profiles=(Profile(shapes[0], shapes[-1], shapes[-1]),),
        programs=tuple(Program(tactic, "", each, 0, tuple(spec.name for spec in ends[1])) for each in shapes),
        buckets=tuple(Bucket(each, number, 10.0 + number) for number, each in enumerate(shapes)),
        regions=(), fingerprint=fingerprint.here(), precision=tactic.precision, source_hash="",
    )  # fmt: skip
    unread: Any = None  # it was never a file
    return Engine(Sealed("m", manifest, {}, "", unread), dict(enumerate(programs)), 1)


def pictures(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, *PICTURE)).astype(np.float32)
