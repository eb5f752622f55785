"""The tracker's search branch on a CPU: eager, ONNX Runtime and engines in turns, shapes, requests under way, split.

One process: a way computes in its turn only, on all cores. Called by `tracker`.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import penstock as ps
from benches.stories import tracker_lab
from benches.stories.machine import machine
from benches.stories.tracker_flights import flight, there_and_back
from benches.stories.tracker_lab import Arrays, Lab
from benches.stories.tracker_results import BASE, ENGINE, Flight, Measured, Rows, Split, Way
from examples.tracker.likeness import likeness
from examples.tracker.scene import OBJECTS, scene
from examples.tracker.tracking import SEARCH_SIZE, cropped
from examples.tracker.turns import take_turns
from penstock.build import timing
from penstock.errors import PenstockError

Answers = Mapping[str, npt.NDArray[Any]]
Call = Callable[[Arrays], Answers]

BATCHES: Final = (1, 8)
_RANGE: Final = (1, 4, 8)
_BETWEEN: Final = 3  # rows that neither engine of one shape was built for
_NAMES: Final = "scores", "boxes"
_COSINE: Final = {"FP32": 0.9999, "BF16": 0.999, "INT8": 0.99}
"""What counts as accurate. INT8's is where every region of the held-out frame still has its best place."""

_UNDER_WAY: Final = (
    ("each waited for at once", 1, 1),
    ("the next cropped meanwhile", 1, 2),
    ("two contexts of one thread", 2, 2),
    ("two contexts, two more waiting", 2, 4),
)
"""Title, contexts, and requests handed over before the oldest is waited for."""

_EIGHT_BITS: Final = 2  # times the seconds of a build: it calibrates, and has more candidates
_WARM: Final = 3


@dataclass(frozen=True)
class Options:
    rounds: int
    seconds: float
    """Of each turn."""

    flight_seconds: float
    budget: float
    """Seconds of each build."""

    compile: bool
    """Whether torch.compile takes part."""


def measure(folder: Path, options: Options) -> Measured:
    """Raises MissingError where the model is not there and torch isn't either."""
    lab = tracker_lab.lab(folder)
    absent: list[str] = []
    engines = dict(_engines(lab, options, absent))
    ways = [way for batch in BATCHES for way in _ways(lab, batch, engines, options, absent)]
    fixed = _fastest(ways, engines)
    ranged = _built(lab, fixed.lower(), _shapes(lab, _RANGE), options, absent) if fixed else None
    found = Measured(
        "cpu", machine(), {"rounds": options.rounds, "turn_s": options.seconds, "build_s": options.budget}, tuple(ways)
    )
    if fixed is None:
        return replace(found, absent=tuple(absent))
    opened = ps.load(engines[fixed])
    rows = tuple(_rows(lab, opened, ranged, options)) if ranged else ()
    splits = tuple(_splits(lab, opened, fixed, options))
    opened.close()
    flights = tuple(_flights(lab, engines[fixed], options))
    return replace(found, rows=rows, flights=flights, splits=splits, absent=tuple(dict.fromkeys(absent)))


# ---- engines ----


def _engines(lab: Lab, options: Options, absent: list[str]) -> Iterator[tuple[str, Path]]:
    """By precision, static at each batch."""
    for precision in ("fp32", "bf16", "int8"):
        shapes = [_shapes(lab, (batch,)) for batch in BATCHES]
        if path := _built(lab, precision, shapes, options, absent):
            yield precision.upper(), path


def _built(lab: Lab, precision: str, shapes: Any, options: Options, absent: list[str]) -> Path | None:
    """Found again where nothing changed; None, and the reason kept, where it can't be built."""
    cosine = _COSINE[precision.upper()]
    asked = f"{precision} {shapes} {cosine} {options.budget} {ps.__version__}".encode()
    name = hashlib.sha256(lab.model.read_bytes() + asked).hexdigest()[:12]
    path = lab.folder / f"tracker_{precision}_{name}.engine"
    if path.is_file():
        return path
    seconds = options.budget * (_EIGHT_BITS if precision == "int8" else 1)
    print(f"building {path.name}, {seconds:.0f} s and more ...", file=sys.stderr, flush=True)
    try:
        made = ps.build(
            lab.model, output=path, precision=precision, device="cpu", shapes=shapes, accuracy=f"cosine>={cosine}",
            calibration=lab.calibration if precision == "int8" else None, budget_seconds=seconds,
            timing_cache=lab.folder / "tracker_timings.json",
        )  # fmt: skip
    except PenstockError as error:
        absent.append(f"the engine in {precision.upper()} ({error})")
        return None
    made.close()
    return path


def _shapes(lab: Lab, batches: tuple[int, ...]) -> str:
    rows = {name: array.shape[1:] for name, array in lab.held_out(1).items()}
    sides = {name: ",".join("x".join(map(str, (batch, *row))) for batch in batches) for name, row in rows.items()}
    return ";".join(f"{name}:{side}" for name, side in sides.items())


def _fastest(ways: list[Way], engines: Mapping[str, Path]) -> str | None:
    """The precision whose engine is the fastest accurate one at the largest batch."""
    able = [each for each in ways if each.name.startswith(ENGINE) and each.counts and each.batch == max(BATCHES)]
    best = min(able, key=lambda each: each.milliseconds, default=None)
    return next((name for name in engines if best and best.name == _title(name)), None)


# ---- ways in turns ----


def _ways(lab: Lab, batch: int, engines: Mapping[str, Path], options: Options, absent: list[str]) -> Iterator[Way]:
    inputs = lab.held_out(batch)
    calls: dict[str, tuple[str, Call, str]] = {}
    if tracker_lab.has_torch():
        from benches.stories import tracker_torch

        calls |= tracker_torch.ways(compiled=options.compile and shutil.which("g++") is not None)
    else:
        absent.append("eager rows: torch is not installed, so ONNX Runtime in FP32 is the base")
    calls[f"{BASE} FP32"] = "FP32", _onnxruntime(lab.model, optimised=True), ""
    right = _onnxruntime(lab.model, optimised=False)(inputs)
    opened = {precision: ps.load(path) for precision, path in engines.items()}
    for allowed, engine in opened.items():
        tactic = _tactic(engine, batch)
        calls[_title(allowed)] = tactic.precision.upper(), partial(_called, engine), tactic.name
    found: dict[str, Way] = {}
    for name, (precision, call, note) in calls.items():
        try:
            for _ in range(_WARM):
                answers = call(inputs)
            rows = likeness(answers, right)
        except Exception as error:  # whatever a library raises: the others are measured
            said = f"{type(error).__name__}: {str(error)[:120]}"
            found[name] = Way(name, batch, precision, lost=said)
            continue
        least = min(each.cosine for each in rows.values())
        same = float(np.mean(_places(answers) == _places(right)))
        said = ", ".join(
            filter(None, (note, "" if same == 1 else f"{100 * same:.0f} % of the best places are the same"))
        )
        found[name] = Way(name, batch, precision, likeness=least, accurate=least >= _COSINE[precision], note=said)
    able = {name: partial(calls[name][1], inputs) for name, way in found.items() if not way.lost}
    turns = take_turns(able, options.rounds, options.seconds)
    for engine in opened.values():
        engine.close()
    for name, way in found.items():
        yield replace(way, turns_ms=tuple(turns.get(name, ())))


def _called(engine: Any, inputs: Arrays) -> Answers:
    return _named(list(engine(**inputs).values()))


def _named(arrays: Sequence[npt.NDArray[Any]]) -> Answers:
    """An exporter calls outputs what it likes: their order says which is which."""
    return dict(zip(_NAMES, arrays, strict=True))


def _title(allowed: str) -> str:
    """Of an engine by the narrowest precision that it was allowed: the race may have chosen another."""
    return f"{ENGINE}, {allowed} allowed" if allowed != "FP32" else f"{ENGINE} {allowed}"


def _tactic(engine: Any, batch: int) -> Any:
    """Of the program that runs this batch."""
    buckets = engine.manifest.buckets
    found = next(each for each in buckets if each.shapes["search"][0] == batch)
    return engine.manifest.programs[found.program].tactic


def _onnxruntime(path: Path, *, optimised: bool) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: _named(session.run(None, inputs))


def _places(answers: Answers) -> npt.NDArray[np.int64]:
    """Where each region's best score of the object is, of the square anchor."""
    scores = answers["scores"]
    return np.asarray(scores[:, 7].reshape(len(scores), -1).argmax(1))


# ---- one shape or a range ----


def _rows(lab: Lab, fixed: Any, path: Path, options: Options) -> Iterator[Rows]:
    """At both batches, and at a number of rows that the fixed engine has to be padded for."""
    ranged = ps.load(path)
    built = f"{_RANGE[0]} to {_RANGE[-1]} rows"
    for count in (BATCHES[0], _BETWEEN, BATCHES[-1]):
        inputs, room = lab.held_out(count), next(each for each in BATCHES if each >= count)
        name = f"{_counted(room)}, {_kind(fixed, room)}" + ("" if room == count else ", padded")
        calls = {
            name: partial(_padded, fixed, inputs, room),
            built: partial(_called, ranged, inputs),
        }
        for call in calls.values():
            for _ in range(_WARM):
                call()
        for name, turns in take_turns(calls, options.rounds, options.seconds).items():
            yield Rows(count, name, tuple(turns))
    ranged.close()


def _counted(rows: int) -> str:
    return f"{rows} row{'s' if rows > 1 else ''}"


def _kind(engine: Any, batch: int) -> str:
    """A race may choose a program of dynamic shapes for an engine of one shape, too."""
    return f"{_tactic(engine, batch).shapes} program"


def _padded(engine: Any, inputs: Arrays, rows: int) -> Answers:
    count = len(next(iter(inputs.values())))
    if count == rows:
        return _called(engine, inputs)
    filled = {name: np.concatenate([each, each[:1].repeat(rows - count, 0)]) for name, each in inputs.items()}
    return {name: each[:count] for name, each in _called(engine, filled).items()}


# ---- one by one, or several under way ----


def _flights(lab: Lab, path: Path, options: Options) -> list[Flight]:
    """Requests as a tracker of several objects makes them: each is cropped from the frame before it is handed over."""
    shown, given = scene(OBJECTS, 1), lab.held_out(OBJECTS)
    side = np.full(1, 2.0 * SEARCH_SIZE)

    def request(number: int) -> Arrays:
        region = cropped(shown.frames[0], shown.boxes[0, number : number + 1, :2], side, SEARCH_SIZE)
        rows = {name: array[number : number + 1] for name, array in given.items()}
        return rows | {"search": (region - region.mean()) / region.std()}

    def once(way: tuple[str, int, int]) -> Flight:
        title, contexts, ahead = way
        engine: Any = ps.load(path, instances=contexts)
        found = flight(engine, title, contexts, ahead, options.flight_seconds / 2, request, OBJECTS)
        engine.close()
        return found

    return there_and_back(_UNDER_WAY, once)


# ---- split ----


def _splits(lab: Lab, engine: Any, precision: str, options: Options) -> Iterator[Split]:
    for batch in BATCHES:
        load = timing.Load(1, 200.0, options.seconds, 3)
        report = timing.measure(engine, lab.held_out(batch), load)
        latency = report.latency.median
        enqueue = report.enqueue.median if report.enqueue else 0.0
        yield Split(f"{ENGINE} {precision}", batch, enqueue, 0.0, latency, 0.0, latency)
