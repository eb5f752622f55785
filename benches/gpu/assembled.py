"""An engine of a form's buckets that is sealed nowhere: programs compiled and tuned here, and their times.

For benches on a machine that can't build, since it has no model but a prepared form. Needs torch and, on `cuda`, the
GPU. Called by `serve_gpu` and by stories.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benches.serve_clients import Row, pictures
from penstock.engine import fingerprint
from penstock.engine.cuda.runtime import CudaRuntime
from penstock.engine.cuda.tuning import Tuning
from penstock.engine.engine import Engine
from penstock.engine.plan import Bucket, Manifest, Profile, Program, Tactic
from penstock.engine.sealed import Sealed
from penstock.tensors import TensorSpec

INPUT: Final = "x"
_INSTANCES: Final = 4
_SHARE: Final = 3
"""The largest bucket is tuned for so many times as long as each of the others, which begin with its choices."""


@dataclass(frozen=True)
class Assembled:
    engine: Engine
    programs: Mapping[int, CudaRuntime]
    milliseconds: Mapping[int, float]
    """Rows -> one call, transfers included."""


def assembled(
    path: Path, name: str, row: Row, batches: Sequence[int], device: Any, seconds: float, contexts: int = 1
) -> Assembled:
    """Of the form at `path`, whose one input `x` takes rows of this shape, at these batches.

    seconds   of tuning the largest bucket; 0: libraries' kernels as they come.
    contexts  that will compute at once.
    """
    precision = "fp16" if device.type == "cuda" else "fp32"
    steps = "tuned" if seconds else "plain"
    tactic = Tactic("cuda", precision, "lowered", "static", options=(("steps", steps),))
    programs: dict[int, CudaRuntime] = {}
    buckets: list[Bucket] = []
    for at, batch in enumerate(sorted(batches, reverse=True)):
        _allow(path, seconds / (1 if at == 0 else _SHARE), contexts)
        shapes = {INPUT: (batch, *row)}
        programs[at] = CudaRuntime.compile(path, tactic, shapes=shapes, instances=1, threads=None, device=device)
        spent = _milliseconds(programs[at], batch, row, 20 if device.type == "cuda" else 1)
        buckets.append(Bucket(shapes, at, 1e3 * spent))
        print(f"bucket {batch:3}: {spent:7.3f} ms a call", file=sys.stderr, flush=True)
    low, high = ({INPUT: (rows, *row)} for rows in (1, max(batches)))
    engine = unsealed(name, tactic, programs, buckets, Profile(low, high, high), _INSTANCES)
    times = {each.shapes[INPUT][0]: each.microseconds / 1e3 for each in buckets}
    return Assembled(engine, programs, times)


def unsealed(
    name: str,
    tactic: Tactic,
    programs: Mapping[int, CudaRuntime],
    buckets: Sequence[Bucket],
    profile: Profile,
    instances: int,
) -> Engine:
    """An engine of programs that are there: bucket i is answered by program i, and rows may be any of the profile's."""
    names = tuple(each.name for each in programs[0].outputs)

    def free(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(each.name, each.datatype, (-1, *each.shape[1:])) for each in specs)

    manifest = Manifest(
        name=name, inputs=free(programs[0].inputs), outputs=free(programs[0].outputs), profiles=(profile,),
        programs=tuple(Program(tactic, "", dict(each.shapes), 0, names) for each in buckets),
        buckets=tuple(buckets), regions=(), fingerprint=fingerprint.here(), precision=tactic.precision, source_hash="",
    )  # fmt: skip
    unread: Any = None  # it was never a file
    return Engine(Sealed(name, manifest, {}, "", unread), programs, instances)


def _allow(path: Path, seconds: float, contexts: int) -> None:
    """The time of the next bucket; what was chosen so far stays."""
    beside = path.with_name(path.stem + ".tuning.json")
    if not beside.is_file():
        Tuning.prepare(path, seconds, contexts=contexts)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"seconds": seconds}))


def _milliseconds(program: CudaRuntime, rows: int, row: Row, calls: int) -> float:
    x = pictures(rows, row, program.inputs[0].dtype)
    instance = program.instance()
    instance.execute({INPUT: x})
    begun = time.perf_counter()
    for _ in range(calls):
        instance.execute({INPUT: x})
    return 1e3 * (time.perf_counter() - begun) / calls
