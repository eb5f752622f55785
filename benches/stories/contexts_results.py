"""What the story of contexts measured, as plain data: to JSON and back, and what follows from it.

Pure computing; nothing here measures, draws or prints. Called by `contexts` and `contexts_measuring`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from examples.clip.judging import Tally

SHARED: Final = "one context, shared by threads"
LOCKED: Final = "one context and a lock"
POOLED: Final = "a context for each call, same library"
ENGINE: Final = "ps.load(engine), called by threads"
SERVED: Final = "served: the tower over HTTP"
_UNFAIR: Final = 50
"""Times the median that the 99th percentile is, beyond which some callers are overtaken by others all the time."""

PICTURES: Final = "served: pictures over HTTP"


@dataclass(frozen=True, order=True)
class Setting:
    contexts: int
    threads: int | None
    """Of each context; None: it computes on no cores."""

    def __str__(self) -> str:
        return f"{self.contexts}" if self.threads is None else f"{self.contexts} x {self.threads} threads"


@dataclass(frozen=True)
class Cell:
    """A way at a level."""

    way: str
    contexts: int
    threads: int | None
    in_flight: int
    asked: int
    right: int
    wrong: int
    missing: int
    failed: int
    throughput: float
    """Right answers a second."""

    p50_ms: float
    p99_ms: float
    least: float
    """Cosine, of the right answers."""

    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, way: str, setting: Setting, in_flight: int, tally: Tally) -> "Cell":
        return cls(
            way, setting.contexts, setting.threads, in_flight, tally.asked, tally.right, tally.wrong, tally.missing,
            tally.failed, tally.right / tally.seconds if tally.seconds else 0.0, tally.percentile(50),
            tally.percentile(99), tally.least, tuple(tally.reasons[:3]),
        )  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{self.way:38} {self.contexts:2} contexts  {self.in_flight:3} in flight  {self.asked:6} asked  "
            f"{self.wrong:5} wrong  {self.missing} missing  {self.failed} failed  {self.throughput:8.1f}/s  "
            f"p50 {self.p50_ms:8.1f}  p99 {self.p99_ms:8.1f} ms"
        )

    @property
    def good(self) -> bool:
        return self.right == self.asked > 0

    @property
    def setting(self) -> Setting:
        return Setting(self.contexts, self.threads)


def joined(tallies: Sequence[Tally], *, at_once: bool = True) -> Tally:
    """Of parts that were measured at once, or one after the other."""
    whole = Tally()
    for each in tallies:
        whole.asked += each.asked
        whole.right += each.right
        whole.wrong += each.wrong
        whole.missing += each.missing
        whole.failed += each.failed
        whole.least = min(whole.least, each.least)
        whole.seconds = max(whole.seconds, each.seconds) if at_once else whole.seconds + each.seconds
        whole.milliseconds += each.milliseconds
        whole.reasons += [reason for reason in each.reasons if reason not in whole.reasons]
    return whole


@dataclass(frozen=True)
class Swept:
    """A setting, and what it did in each of its turns."""

    contexts: int
    threads: int | None
    throughputs: tuple[float, ...]
    """Right answers a second, by turn."""

    @property
    def setting(self) -> Setting:
        return Setting(self.contexts, self.threads)

    @property
    def median(self) -> float:
        return median(self.throughputs)

    @property
    def spread(self) -> float:
        """Largest over smallest turn, less one."""
        return max(self.throughputs) / min(self.throughputs) - 1 if min(self.throughputs) > 0 else float("inf")


@dataclass(frozen=True)
class Measured:
    """On one device."""

    device: str
    machine: Mapping[str, Any]
    tower: str
    engine: str
    library: str
    """Of the first three ways."""

    reference: str
    closest: float
    """The largest cosine of two different pictures."""

    swept_in_flight: int
    swept: tuple[Swept, ...]
    cells: tuple[Cell, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> "Measured":
        """Raises KeyError and TypeError for a document of something else."""
        given = dict(document)
        given["swept"] = tuple(Swept(**{**each, "throughputs": tuple(each["throughputs"])}) for each in given["swept"])
        given["cells"] = tuple(Cell(**{**each, "reasons": tuple(each["reasons"])}) for each in given["cells"])
        return cls(**given)

    def of(self, way: str) -> list[Cell]:
        return [each for each in self.cells if each.way == way]


def best(swept: Sequence[Swept]) -> Swept:
    """The highest median; of equals the fewest contexts, which hold the least memory. ValueError for none."""
    return max(sorted(swept, key=lambda each: each.contexts), key=lambda each: each.median)


def findings(measured: Measured) -> list[str]:
    """Sentences that follow from the figures, each with its device."""
    found = [
        *_sharing(measured),
        *_right(measured),
        *_abreast(measured),
        *_best(measured),
        *_unfair(measured),
        *_files(measured),
    ]
    return [f"{measured.device}: {each}" for each in found]


def _sharing(measured: Measured) -> list[str]:
    found = []
    for cell in measured.of(SHARED):
        if not cell.asked:
            continue
        bad = cell.wrong + cell.failed + cell.missing
        said = f"{cell.wrong} of {cell.asked} answers are wrong ({100 * cell.wrong / cell.asked:.0f} %)"
        if bad > cell.wrong:
            said += f", {cell.failed} failed and {cell.missing} are missing"
        if not bad:
            said = f"none of {cell.asked} answers was wrong this time, which proves nothing"
        found.append(f"{cell.in_flight} threads on one context without a lock: {said}.")
    return found


def _right(measured: Measured) -> list[str]:
    others = [each for each in measured.cells if each.way != SHARED]
    if not others:
        return []
    asked, levels = sum(each.asked for each in others), sorted({each.in_flight for each in others})
    bad = [each for each in others if not each.good]
    within = f"at {', '.join(map(str, levels[:-1]))} and {levels[-1]}" if len(levels) > 1 else f"at {levels[0]}"
    if not bad:
        return [
            f"a lock, a context for each call, an engine called by threads and the server answer {asked} calls "
            f"{within} at once: none wrong, none missing, none failed."
        ]
    return [
        f"NOT RIGHT: {each.way} at {each.in_flight}: {each.wrong} wrong, {each.missing} missing, {each.failed} failed "
        f"of {each.asked} ({'; '.join(each.reasons) or 'no reason given'})."
        for each in bad
    ]


def _abreast(measured: Measured) -> list[str]:
    """What more than one context is worth, on the same library."""
    alone = {each.in_flight: each.throughput for each in measured.of(LOCKED) if each.throughput > 0}
    return [
        f"{cell.contexts} contexts on the same library answer {cell.throughput / alone[cell.in_flight]:.2f} times as "
        f"many as one behind a lock ({cell.throughput:.1f} and {alone[cell.in_flight]:.1f} a second) at "
        f"{cell.in_flight} threads."
        for cell in measured.of(POOLED)
        if cell.in_flight in alone
    ]


def _best(measured: Measured) -> list[str]:
    if not measured.swept:
        return []
    top = best(measured.swept)
    others = [each for each in measured.swept if each is not top]
    shown = ", ".join(f"{each.setting}: {each.median:.1f}" for each in measured.swept)
    if not others:
        return [f"only {top.setting} was tried: {top.median:.1f} a second."]
    second = max(others, key=lambda each: each.median)
    lead = top.median / second.median - 1 if second.median > 0 else float("inf")
    noise = max(each.spread for each in (top, second))
    said = f"the best number of contexts is {top.contexts}" if lead > noise else (
        f"{top.contexts} contexts come out best, but by {100 * lead:.0f} % where turns differ by {100 * noise:.0f} %: "
        f"{second.contexts} is as good"
    )  # fmt: skip
    if lead > noise and top.contexts == max(each.contexts for each in measured.swept):
        said += ", the most that were tried"
    return [f"{said} (answers a second with {measured.swept_in_flight} requests in flight, {shown})."]


def _unfair(measured: Measured) -> list[str]:
    """Where those that come back at once overtake those that wait."""
    found = [each for each in measured.cells if each.way != SHARED and each.p99_ms > _UNFAIR * each.p50_ms > 0]
    return [
        f"not fair: {each.way}, {each.in_flight} callers: half are answered within {each.p50_ms:.1f} ms, one in a "
        f"hundred after {each.p99_ms:.0f} ms and more."
        for each in found
    ]


def _files(measured: Measured) -> list[str]:
    """What decoding and preparing cost where requests are files."""
    rows = {(each.in_flight, each.setting): each.throughput for each in measured.of(SERVED)}
    found = [each for each in measured.of(PICTURES) if rows.get((each.in_flight, each.setting), 0) > 0]
    if not found:
        return []
    most = max(found, key=lambda each: each.in_flight)
    rate = rows[most.in_flight, most.setting]
    return [
        f"asked with files, which it decodes and scales, the server answers {most.throughput:.0f} a second at "
        f"{most.in_flight} at once; asked with rows that are ready for the tower, {rate:.0f}."
    ]
