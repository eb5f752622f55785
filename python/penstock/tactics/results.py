"""What a race found, as data: measurements, lost and skipped candidates, and the questions asked of them.

Nothing here runs anything. Made by `race`, read by `build` (selection, evidence) and by whoever shows progress.
Buckets are named by their place in the sequence of shapes that the race was given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from penstock.engine.plan import Shapes, Tactic
from penstock.errors import ModelLoadError

# Within this of the fastest a tactic may be the fastest: times taken one after the other on a shared machine drift
# by tens of percent. What lies in it is timed again side by side by `confirm`.
FINALIST_RATIO = 1.5


@dataclass(frozen=True, slots=True)
class Paired:
    """A comparison in turns: both ran in every round, so what disturbed the machine disturbed both."""

    against: Tactic
    ratio: float
    """Median over the rounds of (this one's time / the other's); below 1: this one is faster."""

    low: float
    high: float
    """The ratio lies between these: the median's interval of 95 %, or all that was seen in fewer than 6 rounds."""

    rounds: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """How long one call takes at the shapes of one bucket, measured inside the process that runs it."""

    tactic: Tactic
    bucket_index: int
    median_us: float
    spread_us: float
    """Median absolute deviation from the median."""

    samples: int
    paired: Paired | None = None
    """Against the best known then; None for the first, and where the other was not at hand."""

    confirmed: bool = False
    """Timed long and side by side with the other finalists. Comparable with confirmed ones of the same bucket."""

    cached: bool = False
    """From the timing cache: no process was started for it."""

    def scaled(self, factor: float) -> "Measurement":
        """On the scale of another time of day; ratios stay."""
        return replace(self, median_us=self.median_us * factor, spread_us=self.spread_us * factor)

    def on_scale(self, reference_us: float) -> "Measurement":
        """As long as its ratio to the other says, which took `reference_us`; unpaired ones stay as they are."""
        return self if self.paired is None else self.scaled(reference_us * self.paired.ratio / self.median_us)


@dataclass(frozen=True, slots=True)
class Lost:
    """A candidate that could not be run: it crashed, hung, failed, or took memory or time beyond every reason."""

    tactic: Tactic
    reason: str
    """In plain words, for reports: `crashed while compiling (segmentation fault)`."""

    bucket_index: int | None = None
    """The bucket it was lost at; None: at all of them."""

    cached: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A candidate that was not timed at a bucket, by choice: no time was left, or it could not win."""

    tactic: Tactic
    reason: str
    bucket_index: int | None = None


@dataclass(frozen=True, slots=True)
class Trying:
    """Progress: a candidate's turn begins."""

    tactic: Tactic
    number: int
    of: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """What it took to make a program, measured in its own process."""

    tactic: Tactic
    bucket_index: int | None
    """The bucket it was compiled for; None for dynamic tactics."""

    seconds: float
    bytes: int
    """Memory the process gained by compiling and calling it."""


Progress = Trying | Measurement | Lost | Skipped


@dataclass(frozen=True, slots=True)
class Race:
    """Everything known about the candidates so far. One measurement per tactic and bucket: the best one made."""

    buckets: tuple[Shapes, ...]
    measurements: tuple[Measurement, ...] = ()
    lost: tuple[Lost, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    compiled: tuple[Compiled, ...] = ()
    seconds: float = 0.0
    cache_hits: int = 0
    notes: Sequence[str] = field(default=())
    """What whoever reads the evidence should know: the budget ran out, a cache was not read."""

    def at(self, bucket: int) -> tuple[Measurement, ...]:
        """Measurements at one bucket, fastest first."""
        return tuple(sorted((each for each in self.measurements if each.bucket_index == bucket), key=_order))

    def of(self, tactic: Tactic, bucket: int) -> Measurement | None:
        return next((each for each in self.measurements if (each.tactic, each.bucket_index) == (tactic, bucket)), None)

    def tried(self, tactic: Tactic) -> bool:
        """Whether anything came of it at any bucket, be it that it was lost or that no time was left."""
        found = (each.tactic for results in (self.measurements, self.lost, self.skipped) for each in results)
        return tactic in found

    def bytes_of(self, tactic: Tactic) -> int:
        """Memory of the tactic's largest program; 0 when unknown."""
        return max((each.bytes for each in self.compiled if each.tactic == tactic), default=0)

    def with_measurements(self, newer: Sequence[Measurement]) -> "Race":
        """The same race with measurements of the same tactic and bucket replaced by the newer ones."""
        found: Mapping[tuple[Tactic, int], Measurement] = {
            (each.tactic, each.bucket_index): each for each in (*self.measurements, *newer)
        }
        return replace(self, measurements=tuple(found.values()))


def _order(measurement: Measurement) -> float:
    return measurement.median_us


def ranked(race: Race, bucket: int) -> tuple[Tactic, ...]:
    """Tactics that were timed at the bucket, fastest first."""
    return tuple(each.tactic for each in race.at(bucket))


def best(race: Race, bucket: int) -> Tactic:
    """The fastest tactic at the bucket; raises ModelLoadError when none could be run, with the reasons."""
    tactics = ranked(race, bucket)
    if tactics:
        return tactics[0]
    reasons = "; ".join(
        f"{each.tactic.name}: {each.reason}" for each in race.lost if each.bucket_index in (None, bucket)
    )
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in race.buckets[bucket].items())
    raise ModelLoadError(f"no library runs the model at {shapes}: {reasons or 'nothing was tried'}")


def finalists(race: Race, bucket: int, ratio: float = FINALIST_RATIO) -> tuple[Tactic, ...]:
    """Tactics that may be the fastest at the bucket: within `ratio` of the best, fastest first."""
    found = race.at(bucket)
    return tuple(each.tactic for each in found if each.median_us <= ratio * found[0].median_us)


def merged(first: Race, second: Race) -> Race:
    """Two races over the same buckets as one; of two measurements of the same thing the second race's counts."""
    if [dict(shapes) for shapes in first.buckets] != [dict(shapes) for shapes in second.buckets]:
        raise ValueError("races over different buckets can't be compared")
    return replace(
        first.with_measurements(second.measurements),
        lost=(*first.lost, *second.lost),
        skipped=(*first.skipped, *second.skipped),
        compiled=(*first.compiled, *second.compiled),
        seconds=first.seconds + second.seconds,
        cache_hits=first.cache_hits + second.cache_hits,
        notes=(*first.notes, *second.notes),
    )
