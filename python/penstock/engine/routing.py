"""Which program runs a call, on which rows: a pure function of the manifest and the call's shapes.

Rows are the batch: dimension 0, where it is free in every input and output. A static program runs its own number of
rows, so a call is padded up to it or split over several; a dynamic one runs any number. Times of the buckets say which
way is cheapest. Called by the engine, once for each shape it meets: the answer is kept.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from penstock.engine.plan import Bucket, Manifest, Profile, Shape, Shapes
from penstock.errors import InvalidArgument
from penstock.tensors import TensorSpec

# A dynamic program whose times are not known here is taken to cost this much more than what was chosen over it.
_UNKNOWN_RATIO: Final = 1.2
# Of the time of the smallest bucket, what a call with next to no rows still costs.
_LEAST_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """One run: rows `first` to `last` of the call, padded to `rows`."""

    program: int
    first: int
    last: int
    rows: int


@dataclass(frozen=True, slots=True)
class Route:
    """The runs that answer a call, in the order of its rows."""

    steps: tuple[Step, ...]
    batched: bool
    """Rows can be told apart; False: one step that takes everything as it is."""


def batched(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether dimension 0 of every input and output is the batch: free, and of one name where inputs name it."""
    free = all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))
    names = {spec.axes[0] for spec in inputs if spec.axes} - {None}
    elsewhere = {axis for spec in inputs for axis in spec.axes[1:]}
    return bool(inputs) and free and len(names) <= 1 and names.isdisjoint(elsewhere)


def route(manifest: Manifest, shapes: Shapes, available: frozenset[int] | None = None) -> Route:
    """How to run inputs of these shapes; raises InvalidArgument when no profile takes them.

    available  programs that may be used, where not all are loaded.
    """
    usable = frozenset(range(len(manifest.programs))) if available is None else available
    if not batched(manifest.inputs, manifest.outputs):
        if not any(each.contains(shapes) for each in manifest.profiles):
            raise InvalidArgument(_outside(manifest, shapes))
        return Route((Step(_whole(manifest, shapes, usable), 0, 0, 0),), False)
    counts = {shape[0] for shape in shapes.values()}
    if len(counts) != 1:
        raise InvalidArgument(f"inputs have different numbers of rows: {_written(shapes)}")
    count = counts.pop()
    if count == 0:
        raise InvalidArgument(f"expected at least one row, got {_written(shapes)}")
    most = max((_most(profile, shapes) for profile in manifest.profiles), default=0)
    if most == 0:
        raise InvalidArgument(_outside(manifest, shapes))
    times, rest = divmod(count, most)
    whole = _chunk(manifest, shapes, most, usable) if times else ()
    steps = [_moved(step, at * most) for at in range(times) for step in whole]
    if rest:
        steps += [_moved(step, times * most) for step in _chunk(manifest, shapes, rest, usable)]
    return Route(tuple(steps), True)


def _most(profile: Profile, shapes: Shapes) -> int:
    """The most rows at once that a profile takes at these other dimensions; 0 when it does not take them at all.

    Fewer rows than its minimum count as taken: they are a part of a batch.
    """
    most = min((shape[0] for shape in profile.maximum.values()), default=0)
    at = {name: (most, *shape[1:]) for name, shape in shapes.items()}
    return most if profile.contains(at) else 0


def _moved(step: Step, rows: int) -> Step:
    return replace(step, first=step.first + rows, last=step.last + rows)


def _chunk(manifest: Manifest, shapes: Shapes, count: int, usable: frozenset[int]) -> tuple[Step, ...]:
    """The cheapest runs for rows that fit in one: by dynamic programming over the number of rows left."""
    others = beyond_rows(shapes)
    alike = [each for each in manifest.buckets if each.program in usable and beyond_rows(each.shapes) == others]
    for bucket in alike:
        # What was measured here is not weighed against estimates: its program won.
        if _rows(bucket) == count:
            return (Step(bucket.program, 0, count, count),)
    static = [(each, _rows(each)) for each in alike if manifest.programs[each.program].shapes]
    costs = [_Cost(manifest, at, shapes) for at in sorted(usable) if not manifest.programs[at].shapes]
    if not static and not costs:
        raise InvalidArgument(_outside(manifest, shapes))
    if not static:
        return (Step(min(costs, key=lambda cost: cost.of(count)).program, 0, count, count),)
    # Of n rows: the lowest cost, of equal ones the fewest runs, and the first of them: (program, rows taken, rows run).
    best: list[tuple[float, int, tuple[int, int, int]]] = [(0.0, 0, (0, 0, 0))]
    for n in range(1, count + 1):
        ways: list[tuple[float, int, tuple[int, int, int]]] = []
        for bucket, rows in static:
            rest = best[max(0, n - rows)]
            ways.append((bucket.microseconds + rest[0], 1 + rest[1], (bucket.program, min(rows, n), rows)))
        ways += [(cost.of(n), 1, (cost.program, n, n)) for cost in costs]
        best.append(min(ways))
    steps: list[Step] = []
    at = 0
    while at < count:
        program, taken, rows = best[count - at][2]
        steps.append(Step(program, at, at + taken, rows))
        at += taken
    return tuple(steps)


class _Cost:
    """Microseconds of a dynamic program by rows: between its buckets by straight lines, beyond them by size."""

    def __init__(self, manifest: Manifest, program: int, shapes: Shapes) -> None:
        self.program = program
        own = [each for each in manifest.buckets if each.program == program]
        self._ratio = 1.0 if own else _UNKNOWN_RATIO
        points = sorted({_volume(each.shapes): each.microseconds for each in own or manifest.buckets}.items())
        self._sizes = [size for size, _ in points]
        self._times = [time for _, time in points]
        self._row = _volume({name: (1, *shape[1:]) for name, shape in shapes.items()})

    def of(self, rows: int) -> float:
        size = rows * self._row
        sizes, times = self._sizes, self._times
        if not sizes:
            return float(size)
        at = bisect_left(sizes, size)
        if at == len(sizes):
            return self._ratio * times[-1] * size / sizes[-1]
        if at == 0:
            return self._ratio * times[0] * max(size / sizes[0], _LEAST_SHARE)
        share = (size - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
        return self._ratio * (times[at - 1] + share * (times[at] - times[at - 1]))


def _whole(manifest: Manifest, shapes: Shapes, usable: frozenset[int]) -> int:
    """The program for a call without rows: that of its bucket, else a dynamic one."""
    for bucket in manifest.buckets:
        if bucket.program in usable and dict(bucket.shapes) == dict(shapes):
            return bucket.program
    for at in sorted(usable):
        if dict(manifest.programs[at].shapes) == dict(shapes):
            return at
    costs = [_Cost(manifest, at, shapes) for at in sorted(usable) if not manifest.programs[at].shapes]
    if not costs:
        raise InvalidArgument(_outside(manifest, shapes))
    return min(costs, key=lambda cost: cost.of(1)).program


def beyond_rows(shapes: Shapes) -> Mapping[str, Shape]:
    """What is left of shapes without the batch."""
    return {name: tuple(shape[1:]) for name, shape in shapes.items()}


def _rows(bucket: Bucket) -> int:
    return next(iter(bucket.shapes.values()))[0]


def _volume(shapes: Shapes) -> int:
    total = 0
    for shape in shapes.values():
        size = 1
        for each in shape:
            size *= each
        total += size
    return max(1, total)


def _written(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _outside(manifest: Manifest, shapes: Shapes) -> str:
    limits = [f"{_written(profile.minimum)} to {_written(profile.maximum)}" for profile in manifest.profiles]
    prepared = sorted({_written(each.shapes) for each in manifest.buckets})
    within = any(each.contains(shapes) for each in manifest.profiles)
    what = f"; prepared are {'; '.join(prepared)}" if within else ""
    return f"shapes {_written(shapes)} are outside what the engine was built for: {'; or '.join(limits)}{what}"
