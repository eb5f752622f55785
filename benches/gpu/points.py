"""Measures one point: a model at a batch, ours and every rival in one process, in turns. Needs torch.

Ways are made one after the other, each within its limit; one that fails is a row that says why. What is ready is
judged, and then takes turns in rounds. When the time is over, what is ready is still judged and timed, and the point is
marked as not complete. Called by `engine_gpu`.
"""

import hashlib
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from benches.gpu import floor, machine, ort, ours, ready, rivals, weights
from benches.gpu.ready import Ready
from benches.gpu.results import OURS, Point, Row, same_work
from benches.gpu.subjects import Subject
from penstock.engine.cuda.choices import from_json as choices_from_json
from penstock.engine.lowered import LoweredGraph, from_json

if TYPE_CHECKING:
    from penstock.engine.cuda.precompile import Compilers

_LEAST_SECONDS: Final = 10.0  # to finish a way in, when the time is over meanwhile
_AFTER_SECONDS: Final = 8.0  # of a point after tuning, where ours alone is measured


class WorkError(Exception):
    """Ours and the rival don't compute the same model."""


@dataclass(frozen=True)
class Settings:
    folder: Path
    """Of the lowered graphs."""

    device: str
    rounds: int
    tune_seconds: float
    way_seconds: float
    """Limit of making one way."""

    seed: int
    search: bool
    """Whether torch.compile's max-autotune takes part."""

    kernels: str
    """Digest of ours."""

    ways: tuple[str, ...] = ()
    """Beginnings of the names of those that take part; empty: all."""

    def stamp(self, subject: Subject, batch: int) -> dict[str, Any]:
        """What makes a result another one."""
        graph = (self.folder / f"{subject.name}.b{batch}.json").read_bytes()
        return {
            "rounds": self.rounds, "tune_seconds": self.tune_seconds, "search": self.search, "ways": list(self.ways),
            "device": torch.cuda.get_device_name() if self.device.startswith("cuda") else "CPU",
            "torch": torch.__version__, "graph": hashlib.sha256(graph).hexdigest()[:16], "kernels": self.kernels,
            "seed": self.seed,
        }  # fmt: skip

    def wants(self, way: str) -> bool:
        return not self.ways or any(way.startswith(each) for each in self.ways)

    def tuning(self, left: float) -> float:
        """Seconds of tuning, of those that are left: rivals want most of them."""
        alone = bool(self.ways) and all(each.startswith(OURS) for each in self.ways)
        return min(self.tune_seconds, max(1.0, left - _AFTER_SECONDS if alone else left / 3))


def measure(
    subject: Subject, batch: int, settings: Settings, at_one: Point | None, compilers: "Compilers | None", until: float
) -> Point:
    """`at_one`: the same model at batch 1, for its choices. `until`: on the monotonic clock. Raises WorkError."""
    started = time.monotonic()
    gauges = machine.gauge("begin", settings.device)
    graph, tensors = _loaded(settings, subject, batch)
    given = weights.inputs(subject, batch, settings.seed)
    others = weights.inputs(subject, batch, settings.seed + 1)
    wide = ours.Model(graph, tensors, given, settings.device)
    model = ours.Model(graph, tensors, given, settings.device, subject.eight, [others]) if subject.eight else wide
    ahead = ours.compiling_ahead(model, compilers, until) if settings.wants(OURS) else None
    cost = floor.cost(model.graph)
    try:
        torch_has = subject.source == "torch"
        rival = rivals.of_module(subject, given, settings.device) if torch_has else rivals.of_steps(wide)
    finally:
        if ahead is not None:  # whatever happened: what waits in the compilers' queue is in the next point's way
            ahead.pause()
    if not same_work(cost.flops, rival.flops):
        raise WorkError(
            f"{subject.name} at batch {batch}: ours does {cost.flops / 1e9:.3f} GFLOP, torch's module "
            f"{rival.flops / 1e9:.3f}, expected at most 5 % between them; lower the graph again"
        )
    making = _Making(settings, until)
    choices, text, alone = None, "", ""
    if settings.wants(OURS):
        with making.row(OURS):
            seconds = settings.tuning(until - time.monotonic())
            choices, note = ours.tuned(model, seconds, others, compilers)
            text = ours.text_of(choices)
            making.ways.extend(ours.ways(model, choices, note, compilers))
    for name, make in rivals.makers(rival, search=settings.search):
        making.make(name, make)
    for name, make in ort.makers(subject, batch, settings.folder, given, rival.expected, settings.device):
        making.make(name, make)
    rows = [*_timed(making.ways, settings, until), *making.lost]
    if choices is not None and not subject.eight and batch > 1 and at_one is not None and at_one.choices:
        with making.row("row alone"):
            one, of_one = _loaded(settings, subject, 1)
            alone = ours.row_alone(model, choices, one, of_one, choices_from_json(at_one.choices))
    return Point(
        subject.name, batch, tuple(rows), cost.milliseconds, cost.flops, rival.flops, text, alone,
        (*gauges, *machine.gauge("end", settings.device)), time.monotonic() - started, not making.cut,
        settings.stamp(subject, batch),
    )  # fmt: skip


def _loaded(settings: Settings, subject: Subject, batch: int) -> tuple[LoweredGraph, weights.Tensors]:
    graph = from_json((settings.folder / f"{subject.name}.b{batch}.json").read_bytes())
    there = weights.carried(settings.folder, subject, batch)
    return graph, weights.complete(graph, there, settings.device)


class _Making:
    """Ways that are ready, and rows of those that are not."""

    def __init__(self, settings: Settings, until: float) -> None:
        self.settings, self.until = settings, until
        self.ways: list[Ready] = []
        self.lost: list[Row] = []
        self.cut = False
        """Whether a way got no time."""

    def make(self, name: str, make: Callable[[], Ready]) -> None:
        if not self.settings.wants(name):
            return
        if name in rivals.NEEDS_GPU and not self.settings.device.startswith("cuda"):
            self.lost.append(Row(name, lost="needs a GPU"))
            return
        if time.monotonic() >= self.until:
            self.cut = True
            self.lost.append(Row(name, lost="no time was left"))
            return
        with self.row(name):
            self.ways.append(make())

    @contextmanager
    def row(self, name: str) -> Iterator[None]:
        """What fails inside is a row; nothing else is."""
        try:
            left = max(_LEAST_SECONDS, self.until - time.monotonic())
            with limited(min(self.settings.way_seconds, left), name):
                yield
        except ort.AbsentError as error:
            self.lost.append(Row(name, lost=f"absent: {error}"))
        except Exception as error:  # whatever a compiler, a library or the driver raises
            if self.settings.device.startswith("cpu"):
                traceback.print_exc()
            self.lost.append(Row(name, lost=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))


def _timed(ways: Sequence[Ready], settings: Settings, until: float) -> Iterator[Row]:
    judged: list[tuple[Ready, Row]] = []
    for each in ways:
        try:
            error, different = ready.judge(each.answer(), each.expected)
            row = Row(
                each.way, error=error, different=different, precision=each.precision, repeats=ready.repeats(each),
                note=each.note,
            )  # fmt: skip
            judged.append((each, row))
        except Exception as error:  # of a replay: the others are still measured
            yield Row(each.way, lost=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    turns = ready.take_turns([each for each, _ in judged], settings.rounds, lambda: time.monotonic() >= until)
    rows = {each.way: replace(row, turns=tuple(turns[each.way])) for each, row in judged}
    if settings.device.startswith("cuda"):
        _transfer(ways, rows, settings.rounds)
    yield from rows.values()


def _transfer(ways: Sequence[Ready], rows: dict[str, Row], rounds: int) -> None:
    """For ours and the fastest rival that is right."""
    by_name = {each.way: each for each in ways}
    for mine in (True, False):
        found = [row for row in rows.values() if row.ours is mine and row.counts]
        if best := min(found, key=lambda row: row.milliseconds, default=None):
            spent = ready.with_transfers(by_name[best.way], rounds)
            rows[best.way] = replace(best, transfers=spent)


@contextmanager
def limited(seconds: float, what: str) -> Iterator[None]:
    """TimeoutError inside, when it takes longer."""

    def over(number: int, frame: object) -> None:
        del number, frame
        raise TimeoutError(f"{what} took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
