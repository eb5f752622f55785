"""The tracker's search branch on an NVIDIA GPU: eager, compiled and engines in turns, graphs on and off, and a split.

Made of what `benches/engine_gpu.py` measures with: lowered graphs that another machine prepared, weights from a seed.
Every way replays on its own stream with inputs on the device; the split and the requests under way begin and end in the
host's memory. Needs torch and Triton, no ONNX. Called by `tracker`.
"""

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benches.gpu.subjects import SUBJECTS
from benches.stories.machine import machine
from benches.stories.tracker_results import EAGER, ENGINE, NO_GRAPH, Measured, Way

if TYPE_CHECKING:
    from benches.gpu.ours import Model
    from benches.gpu.ready import Ready
    from benches.gpu.rivals import Rival
    from penstock.engine.cuda.precompile import Compilers

_SUBJECT, _EIGHT = SUBJECTS["tracker_search"], SUBJECTS["tracker_search_int8"]
BATCHES: Final = (1, 8)
_SEED: Final = 7
_WAY_SECONDS: Final = 40.0
_TURNS_SECONDS: Final = 9.0  # for judging and turns, once everything is made
_ENGINE_SECONDS: Final = 35.0
"""Of the time, kept for engines: shapes, requests under way, split."""

_TOLERANCES: Final = {"FP32": 1e-4, "TF32": 5e-3, "FP16": 1e-2, "BF16": 5e-2, "INT8": 0.25}
"""Largest norm-relative error, as in `benches.gpu.results`; TF32 has FP16's digits."""


@dataclass(frozen=True)
class Options:
    graphs: Path
    device: str
    """cuda; cpu tries the script."""

    rounds: int
    seconds: float
    """After which nothing new is begun."""

    tune_seconds: float
    """Of each precision and batch."""


def prepare(graphs: Path) -> int:
    """Lowers the model in both widths; needs ONNX and torch."""
    from benches.gpu import prepare as making

    for subject in (_SUBJECT, _EIGHT):
        print(*making.prepare(subject, graphs, graphs, subject.batches), sep="\n", flush=True)
    return 0


def measure(options: Options) -> Measured:
    """Raises FileNotFoundError where the graphs were not prepared."""
    import torch

    from benches.gpu import ours
    from benches.stories import tracker_gpu_engine

    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit("tracker: torch sees no GPU; --device cpu tries the script without one")
    until = time.monotonic() + options.seconds
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    ways: list[Way] = []
    absent: list[str] = []
    found = Measured(
        torch.cuda.get_device_name() if cuda else "a GPU's way on the CPU", machine(),
        {"rounds": options.rounds, "seconds": options.seconds, "tune_s": options.tune_seconds},
    )  # fmt: skip
    with ours.compilers(options.device, _jobs()) as compilers:
        for number, batch in enumerate(BATCHES):
            now = time.monotonic()
            share = (until - _ENGINE_SECONDS - now) / (len(BATCHES) - number)
            with _noted(f"batch {batch}", absent):
                ways += _ways(batch, options, compilers, now + share, absent)
    found = replace(found, ways=tuple(ways))
    with _noted("engines", absent), tempfile.TemporaryDirectory(prefix="tracker-") as folder:
        found = tracker_gpu_engine.measure(found, Path(folder), options, until, absent)
    return replace(found, absent=tuple(absent))


def _jobs() -> int:
    from penstock.engine import cores

    return cores.available()


@contextmanager
def _noted(what: str, absent: list[str]) -> Iterator[None]:
    """What fails inside is told, and the rest is measured."""
    try:
        yield
    except Exception as error:  # of the driver, a compiler, or a library
        traceback.print_exc()
        absent.append(f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:160]})")


# ---- ways of one batch, in turns ----


def _ways(
    batch: int, options: Options, compilers: "Compilers | None", until: float, absent: list[str]
) -> Iterator[Way]:
    from benches.gpu import ready
    from benches.gpu.points import limited

    made: list[tuple[str, Ready]] = []
    for name, make in _makers(batch, options, compilers):
        left = until - _TURNS_SECONDS - time.monotonic()
        if left < 0:
            absent.append(f"{name} at batch {batch} (no time was left)")
            continue
        begun = time.monotonic()
        with _noted(f"{name} at batch {batch}", absent), limited(min(_WAY_SECONDS, left + 10), name):
            made += [(precision, replace(each, way=way)) for way, precision, each in make()]
        print(f"{name} at batch {batch}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
    judged: list[tuple[Way, Ready]] = []
    for precision, each in made:
        with _noted(f"{each.way} at batch {batch}", absent):
            error, _ = ready.judge(each.answer(), each.expected)
            good = error <= _TOLERANCES[precision] and ready.repeats(each, 3)
            judged.append((Way(each.way, batch, precision, (), error, good, each.note), each))
    turns = ready.take_turns([each for _, each in judged], options.rounds, lambda: False)
    for way, each in judged:
        yield replace(way, turns_ms=tuple(turns[each.way]))


Made = list[tuple[str, str, "Ready"]]
"""Name, precision, and the way."""


def _makers(batch: int, options: Options, compilers: "Compilers | None") -> Iterator[tuple[str, Callable[[], Made]]]:
    from benches.gpu import rivals, weights

    device = options.device
    given, others = (weights.inputs(_SUBJECT, batch, seed) for seed in (_SEED, _SEED + 1))
    model = _model(_SUBJECT.name, batch, options, given)
    rival = rivals.of_module(_SUBJECT, given, device)
    wide, narrow = _wide(rival, given), rival.precision.upper()
    yield "eager FP32", lambda: _eager(wide, "FP32")
    yield "engine in 16 bits", lambda: _tuned(model, options, others, compilers)
    if (options.graphs / f"{_EIGHT.name}.b{batch}.json").is_file():
        yield "engine INT8", lambda: _eight(batch, given, options, others, compilers)
    for name, make in rivals.makers(rival, search=False):
        if name == rivals.EAGER:
            yield f"eager {narrow}", partial(_named, f"{EAGER} {narrow}, channels last", narrow, make)
        elif name in (rivals.GRAPH, rivals.DEFAULT) and device == "cuda":
            yield name, partial(_named, f"{name} {narrow}", narrow, make)
    yield "eager TF32", lambda: _eager(_with_tf32(wide), "TF32")
    for precision in ("fp32", "tf32"):
        yield f"engine {precision.upper()}", partial(_libraries, model, precision)


def _named(name: str, precision: str, make: "Callable[[], Ready]") -> Made:
    return [(name, precision, make())]


def _eight(batch: int, given: Any, options: Options, others: Any, compilers: "Compilers | None") -> Made:
    """With scales of inputs that are not judged."""
    model = _model(_EIGHT.name, batch, options, given, [others])
    return _tuned(model, options, others, compilers)


def _model(name: str, batch: int, options: Options, given: Any, seen: Any = ()) -> "Model":
    from benches.gpu import ours, weights
    from penstock.engine.lowered import from_json

    subject = SUBJECTS[name]
    graph = from_json((options.graphs / f"{name}.b{batch}.json").read_bytes())
    there = weights.complete(graph, weights.carried(options.graphs, subject, batch), options.device)
    return ours.Model(graph, there, given, options.device, subject.eight, seen)


def _wide(rival: "Rival", given: Any) -> "Rival":
    """The module in FP32 with the weights of the one in 16 bits, as a user calls it: no format is asked for."""
    import torch

    from benches.gpu import torch_models
    from benches.gpu.rivals import Rival
    from benches.gpu.weights import tensors_like

    module = torch_models.build(_SUBJECT.model).half().float().to(rival.device)
    inputs = tensors_like(given, torch.float32, str(rival.device))
    return Rival(module, list(inputs.values()), rival.expected, "fp32")


def _with_tf32(rival: "Rival") -> "Rival":
    import torch

    @contextmanager
    def allowed() -> Iterator[None]:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    found = copy(rival)
    found.arithmetic = allowed
    return found


def _eager(rival: "Rival", precision: str) -> Made:
    from benches.gpu import rivals

    _, make = next(rivals.makers(rival, search=False))
    return [(f"{EAGER} {precision}", precision, make())]


def _libraries(model: "Model", precision: str) -> Made:
    """Every step by a library, in one graph: nothing is tuned in the wide precisions."""
    from benches.gpu import ours

    wide = copy(model)
    wide.precision = wide.label = precision
    made = ours.captured if model.device.startswith("cuda") else _launched
    name = f"{ENGINE} {precision.upper()}, steps by libraries"
    return [(name, precision.upper(), made(name, wide.executor(), wide, ""))]


def _tuned(model: "Model", options: Options, others: Any, compilers: "Compilers | None") -> Made:
    """Kernels chosen by time: in one graph, launched early or not, and without a graph."""
    from benches.gpu import ours
    from benches.gpu.results import OURS

    precision = model.label.upper()
    choices, note = ours.tuned(model, options.tune_seconds, others, compilers)
    found: Made = []
    for each in ours.ways(model, choices, note, compilers):
        title = each.way.removeprefix(OURS).strip(", ")
        found.append((", ".join(filter(None, (f"{ENGINE} {precision}, CUDA graph", title))), precision, each))
    if precision != "INT8":
        name = f"{ENGINE} {precision}, {NO_GRAPH}"
        found.append((name, precision, _launched(name, model.executor(choices), model, "launched one by one")))
    return found


def _launched(name: str, executor: Any, model: "Model", note: str) -> "Ready":
    """Step by step from Python, on a stream of its own."""
    import torch

    from benches.gpu.ready import Ready

    given = model.inputs()
    last: list[torch.Tensor] = []
    stream = torch.cuda.Stream() if model.device.startswith("cuda") else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())

    def replay() -> None:
        last[:] = executor.run(given).values()

    return Ready(name, replay, list(given.values()), lambda: last, model.expected, model.label, stream, note=note)
