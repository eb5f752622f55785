"""An engine of the tracker's search branch on a GPU, called with arrays of the host: shapes, requests under way, split.

The engine is put together from lowered graphs, tuned here and sealed nowhere. Called by `tracker_gpu`.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from benches.gpu.subjects import SUBJECTS
from benches.stories.tracker_flights import flight, there_and_back
from benches.stories.tracker_results import ENGINE, Flight, Measured, Rows, Split
from examples.tracker.turns import take_turns

if TYPE_CHECKING:
    from benches.stories.tracker_gpu import Options

Arrays = dict[str, npt.NDArray[Any]]

_SUBJECT: Final = SUBJECTS["tracker_search"]
_BATCHES: Final = (1, 4, 8)
_LEAST_SECONDS: Final = 8.0
_TUNE_SECONDS: Final = 4.0  # of a bucket; of the largest first, whose choices the others try first
_KINDS: Final = 8
_CALLS: Final = 100
_TURN_SECONDS: Final = 0.15
_FLIGHT_SECONDS: Final = 0.6
_UNDER_WAY: Final = (
    ("one context, each waited for at once", 1, 1),
    ("one context, late", 1, 4),
    ("two contexts, late", 2, 4),
    ("four contexts, late", 4, 8),
    ("eight contexts, late", 8, 16),
)
"""Title, contexts, and requests handed over before the oldest is waited for."""


def measure(found: Measured, folder: Path, options: "Options", until: float, absent: list[str]) -> Measured:
    """`found` with the parts that an engine gives."""
    batches = [each for each in _BATCHES if (options.graphs / f"{_SUBJECT.name}.b{each}.json").is_file()]
    seconds = min(_TUNE_SECONDS, options.tune_seconds, max(1.0, (until - time.monotonic()) / 5))
    engine = _engine(folder, batches, options, seconds)
    parts: tuple[tuple[str, Callable[[], Measured]], ...] = (
        ("the split", lambda: replace(found, splits=tuple(_splits(engine, options)))),
        ("one shape or several", lambda: replace(found, rows=tuple(_rows(engine, options)))),
        ("requests under way", lambda: replace(found, flights=tuple(_flights(engine)))),
    )
    for title, part in parts:
        if until + _LEAST_SECONDS < time.monotonic():
            absent.append(f"{title} (no time was left)")
            continue
        found = part()
    engine.close()
    return found


def _engine(folder: Path, batches: list[int], options: "Options", seconds: float) -> Any:
    import torch

    from benches.gpu import weights
    from benches.gpu.assembled import unsealed
    from penstock.engine.cuda import form
    from penstock.engine.cuda.runtime import CudaRuntime
    from penstock.engine.cuda.tuning import Tuning
    from penstock.engine.lowered import from_json
    from penstock.engine.plan import Bucket, Profile, Tactic

    entries = []
    for batch in batches:
        graph = from_json((options.graphs / f"{_SUBJECT.name}.b{batch}.json").read_bytes())
        full = weights.complete(graph, weights.carried(options.graphs, _SUBJECT, batch), "cpu")
        entries.append((_shapes(batch), graph, {name: full[name].float().numpy() for name in graph.weights}))
    path = folder / "model.safetensors"
    form.write(path, entries)
    Tuning.prepare(path, seconds)
    cuda = options.device == "cuda"
    steps = "tuned" if cuda else "plain"
    tactic = Tactic("cuda", "fp16" if cuda else "fp32", "lowered", "static", options=(("steps", steps),))
    device = torch.device("cuda:0" if cuda else "cpu")
    programs: dict[int, Any] = {}
    buckets: list[Bucket] = []
    for at, batch in enumerate(sorted(batches, reverse=True)):
        shapes = _shapes(batch)
        programs[at] = CudaRuntime.compile(path, tactic, shapes=shapes, instances=1, threads=None, device=device)
        spent = _milliseconds(partial(programs[at], **_inputs(batch)), 10)
        buckets.append(Bucket(shapes, at, 1e3 * spent))
    low, high = _shapes(min(batches)), _shapes(max(batches))
    return unsealed(_SUBJECT.name, tactic, programs, buckets, Profile(low, high, high), 8)


def _shapes(batch: int) -> dict[str, tuple[int, ...]]:
    return {each.name: (batch, *each.shape) for each in _SUBJECT.inputs}


def _inputs(batch: int, seed: int = 7) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in _shapes(batch).items()}


def _milliseconds(call: Callable[[], object], calls: int) -> float:
    """The median of calls one after the other, after a few that are not counted."""
    for _ in range(3):
        call()
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def _splits(engine: Any, options: "Options") -> Iterator[Split]:
    for each in sorted(engine.manifest.buckets, key=lambda bucket: bucket.shapes["search"][0]):
        batch = each.shapes["search"][0]
        inputs = _inputs(batch)
        latency, enqueue = _milliseconds(partial(engine, **inputs), _CALLS), _enqueue(engine, inputs)
        middle = (0.0, latency, 0.0)
        if options.device == "cuda":
            found = engine.compiled(each.program).phases(inputs, _CALLS)
            middle = tuple(map(statistics.median, (found.copy_in, found.compute, found.copy_out)))
        yield Split(f"{ENGINE} FP16", batch, enqueue, *middle, latency)


def _enqueue(engine: Any, inputs: Arrays) -> float:
    times = []
    with engine.context() as context:
        context.enqueue(**inputs).result()
        for _ in range(_CALLS // 2):
            begun = time.perf_counter()
            future = context.enqueue(**inputs)
            times.append(1e3 * (time.perf_counter() - begun))
            future.result()
    return statistics.median(times)


def _rows(engine: Any, options: "Options") -> Iterator[Rows]:
    """Every graph has one shape: a range is answered by the graph that is large enough, padded."""
    known = sorted(bucket.shapes["search"][0] for bucket in engine.manifest.buckets)
    for rows in range(1, known[-1] + 1):
        room = next(each for each in known if each >= rows)
        turns = take_turns({"call": partial(engine, **_inputs(rows))}, options.rounds, _TURN_SECONDS)["call"]
        name = (
            f"{room} row{'s' if room > 1 else ''}"
            if room == rows
            else f"{known[0]} to {known[-1]} rows, padded or in pieces"
        )
        yield Rows(rows, name, tuple(turns))


def _flights(engine: Any) -> list[Flight]:
    requests: list[Mapping[str, npt.NDArray[Any]]] = [_inputs(1, seed) for seed in range(_KINDS)]

    def once(way: tuple[str, int, int]) -> Flight:
        return flight(engine, *way, _FLIGHT_SECONDS, requests.__getitem__, _KINDS)

    return there_and_back(_UNDER_WAY, once)
