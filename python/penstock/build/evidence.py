"""The evidence of a build: what was tried, what it cost, what was lost and why, and how accurate the winner is.

It is sealed into every engine as `evidence.json`, so that a choice can be checked long after. `Evidence` goes to JSON
and back without loss, but for infinities and NaN, which JSON has no word for and which become null. `rows` is the
table that people are shown. Written by the driver; read by `penstock inspect` and `penstock build`.
"""

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

from penstock.build.gate import Gate, Verdict
from penstock.build.metrics import OutputError
from penstock.engine.plan import Fingerprint, Shape, Shapes, Tactic, tactic_from_json, tactic_to_json
from penstock.engine.roofline import Ceilings
from penstock.errors import InvalidArgument
from penstock.graph.optimizing import PassRecord
from penstock.tactics.results import Measurement, Race

VERSION: Final = 1

# The selection takes 2 % for the same time, to have fewer programs; a little more where times were taken again.
_AS_FAST: Final = 0.97
# Layers that are named in a sentence; all of them are in the evidence.
_NAMED: Final = 6


@dataclass(frozen=True, slots=True)
class Timing:
    """One call at the shapes of one bucket, median over `samples` calls."""

    tactic: Tactic
    bucket: int
    """Place in `Evidence.buckets`."""

    median_us: float
    spread_us: float
    samples: int
    confirmed: bool = False
    """Timed long, in turns with the other finalists; the others are first impressions."""

    cached: bool = False
    against: Tactic | None = None
    """Timed in turns with this one; None: alone."""

    ratio: float | None = None
    """This one's time over the other's, median over the turns, and the 95 % interval of it."""

    ratio_low: float | None = None
    ratio_high: float | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """A candidate that is not in the race any more."""

    tactic: Tactic
    reason: str
    bucket: int | None = None
    """None: at all buckets."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A candidate that ran, and failed the gate; with it everything that computes alike, for whatever shapes, but for
    what `Evidence.alone` has.
    """

    tactic: Tactic
    measured: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Alone:
    """A static program with a verdict of its own: the dynamic one of its tactic fails and answers otherwise."""

    tactic: Tactic
    bucket: int
    """Place in `Evidence.buckets`."""

    passed: bool
    measured: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The verdict on the sealed engine."""

    gate: str
    """As `--accuracy` takes it."""

    passed: bool
    measured: float | None
    limit: float
    message: str
    inputs: str
    """What outputs were compared on: `calibration data`, `noise`, or `metric` (the user's own)."""

    samples: int
    interval: tuple[float, float] | None = None
    outputs: tuple[OutputError, ...] = ()


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """The data that INT8 ranges came from."""

    digest: str
    samples: int
    methods: tuple[str, ...] = ()
    """Ways from statistics to ranges that were tried."""

    method: str = ""
    """The one of the engine's INT8 form; empty when no INT8 form won."""


@dataclass(frozen=True, slots=True)
class SensitivityRecord:
    """Layers that were left in a wider type so that the rest may be INT8, BF16 or FP16."""

    kept: tuple[str, ...]
    """Names of the source model's layers."""

    layers: int
    """How many there were to choose from."""

    score: float | None
    evaluations: int
    form: str = ""
    """The form that was made so; empty when no set of layers was found that passes."""

    rounded: int = 0
    """Layers whose weights were rounded together to sixteen bits, those that were left in a wider type among them."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and with what it was built."""

    fingerprint: Fingerprint
    penstock: str
    python: str
    built_at: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a choice was made from."""

    buckets: tuple[Mapping[str, Shape], ...]
    chosen: tuple[Tactic, ...]
    """The tactic of each bucket."""

    timings: tuple[Timing, ...]
    accuracy: Accuracy
    environment: Environment
    seconds: float
    budget_seconds: float
    lost: tuple[Left, ...] = ()
    skipped: tuple[Left, ...] = ()
    refused: tuple[Refused, ...] = ()
    alone: tuple[Alone, ...] = ()
    """Exceptions to what was refused."""

    passes: tuple[PassRecord, ...] = ()
    calibration: CalibrationRecord | None = None
    """None: there was no data, and so no INT8."""

    sensitivity: SensitivityRecord | None = None
    """Of INT8."""

    mixed: SensitivityRecord | None = None
    """Of BF16 or FP16: what stays in FP32."""

    ceilings: Ceilings | None = None
    """Of the device, where the engine is for one; what shares of the roofline are shares of."""

    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **_plain(self)}


def of_race(race: Race) -> tuple[tuple[Timing, ...], tuple[Left, ...], tuple[Left, ...]]:
    """Timings, lost and skipped candidates of a race, for the fields of those names."""
    lost = tuple(Left(each.tactic, each.reason, each.bucket_index) for each in race.lost)
    skipped = tuple(Left(each.tactic, each.reason, each.bucket_index) for each in race.skipped)
    return tuple(map(_timing, race.measurements)), lost, skipped


def _timing(measured: Measurement) -> Timing:
    paired = measured.paired
    return Timing(
        tactic=measured.tactic,
        bucket=measured.bucket_index,
        median_us=measured.median_us,
        spread_us=measured.spread_us,
        samples=measured.samples,
        confirmed=measured.confirmed,
        cached=measured.cached,
        against=paired.against if paired else None,
        ratio=paired.ratio if paired else None,
        ratio_low=paired.low if paired else None,
        ratio_high=paired.high if paired else None,
    )


def of_verdict(gate: Gate, verdict: Verdict, *, inputs: str, samples: int) -> Accuracy:
    return Accuracy(
        gate.text, verdict.passed, finite(verdict.measured), verdict.limit, verdict.message, inputs, samples,
        verdict.interval, verdict.errors,
    )  # fmt: skip


def of_verdicts(verdicts: Mapping[Tactic, Verdict]) -> tuple[Refused, ...]:
    """Those that failed."""
    return tuple(
        Refused(tactic, finite(each.measured), each.message) for tactic, each in verdicts.items() if not each.passed
    )


def environment(machine: Fingerprint) -> Environment:
    """Here and now."""
    built_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Environment(machine, metadata.version("penstock"), platform.python_version(), built_at)


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate, as people are shown it."""

    tactic: Tactic
    microseconds: tuple[float | None, ...]
    """Of each bucket; None where it was not timed."""

    verdict: str
    """`chosen`, `chosen at 8, 64`, `slower`, `as fast at 8` (a program fewer without it), `left out at 8` (by the
    workspace or the shapes it takes), `inaccurate: ...`, `lost: ...`, `not timed: ...`."""

    chosen: bool


def rows(evidence: Evidence) -> tuple[Row, ...]:
    """Every candidate: those chosen first, then by their best standing against the fastest, the lost ones last."""
    times: dict[Tactic, dict[int, float]] = {}
    for timing in evidence.timings:
        times.setdefault(timing.tactic, {})[timing.bucket] = timing.median_us
    untimed = [each.tactic for each in (*evidence.lost, *evidence.skipped)]
    for tactic in untimed:
        times.setdefault(tactic, {})
    found = [
        Row(
            tactic,
            tuple(timed.get(bucket) for bucket in range(len(evidence.buckets))),
            _verdict(evidence, tactic, timed),
            tactic in evidence.chosen,
        )
        for tactic, timed in times.items()
    ]
    fastest = [
        min((time for row in found if (time := row.microseconds[bucket])), default=None)
        for bucket in range(len(evidence.buckets))
    ]
    return tuple(sorted(found, key=lambda row: (not row.chosen, _standing(row, fastest))))


def reasons(evidence: Evidence) -> tuple[str, ...]:
    """One sentence for each bucket: what won, by how much over whom, and what was faster and may not be used."""
    table = rows(evidence)
    return tuple(_reason(evidence, table, bucket) for bucket in by_size(evidence.buckets))


def _reason(evidence: Evidence, table: Sequence[Row], bucket: int) -> str:
    winner = evidence.chosen[bucket]
    timed = sorted(
        ((time, row.tactic) for row in table if (time := row.microseconds[bucket]) is not None),
        key=lambda each: each[0],
    )
    own = next((time for time, tactic in timed if tactic == winner), None)
    text = f"{label(evidence.buckets[bucket])}: {winner.name}"
    if own is None:
        return f"{text}, not timed here: it runs what other buckets' programs leave"
    text += f", {milliseconds(own)} ms"
    others = [(time, tactic) for time, tactic in timed if tactic != winner and not _refused(evidence, tactic, bucket)]
    if others:
        time, tactic = others[0]
        rank = "next" if time >= own else "as fast" if time >= _AS_FAST * own else "faster, and left out,"
        text += f"; {rank} is {tactic.name} with {milliseconds(time)} ms ({time / own:.2f} x)"
    if faster := [tactic.name for time, tactic in timed if time < own and _refused(evidence, tactic, bucket)]:
        text += f"; faster and refused by the gate: {', '.join(faster)}"
    return text


def kept_wide(found: SensitivityRecord) -> str:
    """What stays in FP32 in a form in sixteen bits: the first by name; and whether weights were rounded together."""
    together = f"weights of {found.rounded} layers rounded to sixteen bits together"
    if not found.kept:
        return f"{together}, no layer in FP32"
    names, more = ", ".join(found.kept[:_NAMED]), len(found.kept) - _NAMED
    text = f"{len(found.kept)} of {found.layers} layers that can stay in FP32 do: {names}"
    text += f" and {more} more" if more > 0 else ""
    return f"{text}; {together} but for those" if found.rounded else text


def milliseconds(microseconds: float) -> str:
    """Three digits or more that count: `0.0123`, `1.23`, `123`."""
    value = microseconds / 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _kernels(tactic: Tactic) -> Tactic:
    """What the gate judges: a program for one shape computes as the one for all shapes does."""
    return replace(tactic, shapes="dynamic")


def _refused(evidence: Evidence, tactic: Tactic, bucket: int) -> str:
    """Why the gate does not let it run at a bucket; empty where it does, or was not asked."""
    own = [each for each in evidence.alone if (each.tactic, each.bucket) == (tactic, bucket)]
    if own:
        return "" if own[0].passed else own[0].reason
    return next((each.reason for each in evidence.refused if _kernels(each.tactic) == _kernels(tactic)), "")


def _standing(row: Row, fastest: Sequence[float | None]) -> float:
    ratios = [time / best for time, best in zip(row.microseconds, fastest, strict=True) if time and best]
    return min(ratios, default=math.inf)


def _verdict(evidence: Evidence, tactic: Tactic, timed: Mapping[int, float]) -> str:
    won = [bucket for bucket, each in enumerate(evidence.chosen) if each == tactic]
    if won:
        everywhere = len(won) == len(evidence.chosen)
        return "chosen" if everywhere else "chosen at " + ", ".join(label(evidence.buckets[each]) for each in won)
    refused = [_refused(evidence, tactic, bucket) for bucket in timed or range(len(evidence.buckets))]
    if all(refused):
        return f"inaccurate: {refused[0].partition(';')[0]}"  # without the advice, which is for errors
    timed = {bucket: time for bucket, time in timed.items() if not _refused(evidence, tactic, bucket)}
    lost = [each for each in evidence.lost if each.tactic == tactic]
    if lost and (not timed or lost[0].bucket is None):
        return f"lost: {lost[0].reason}"
    if timed:
        return _beside_chosen(evidence, timed)
    skipped = [each for each in evidence.skipped if each.tactic == tactic]
    return f"not timed: {skipped[0].reason}" if skipped else "not timed"


def _beside_chosen(evidence: Evidence, timed: Mapping[int, float]) -> str:
    """Of a candidate that passed, or was never judged, and was not chosen."""
    times = {(each.tactic, each.bucket): each.median_us for each in evidence.timings}
    ratios = {
        bucket: time / own
        for bucket, time in timed.items()
        if (own := times.get((evidence.chosen[bucket], bucket))) is not None
    }
    near = [bucket for bucket, ratio in ratios.items() if ratio < 1]
    if not near:
        return "slower"
    what = "as fast" if all(ratios[bucket] >= _AS_FAST for bucket in near) else "left out"
    return f"{what} at " + ", ".join(label(evidence.buckets[each]) for each in near)


def by_size(buckets: Sequence[Shapes]) -> tuple[int, ...]:
    """Places of buckets, small shapes first, as people want to read them; a build puts what matters most first."""
    return tuple(sorted(range(len(buckets)), key=lambda each: [tuple(shape) for shape in buckets[each].values()]))


def label(shapes: Mapping[str, Shape]) -> str:
    """A bucket in a word: its shape when there is one input, `x:1x3 mask:1` otherwise."""
    written = {name: "x".join(map(str, shape)) or "scalar" for name, shape in shapes.items()}
    return next(iter(written.values())) if len(written) == 1 else " ".join(f"{a}:{b}" for a, b in written.items())


# ---- JSON ----


def finite(value: float | None) -> float | None:
    """What JSON has a word for."""
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """A dataclass as dicts, lists, text and finite numbers."""
    if isinstance(value, Tactic):
        return tactic_to_json(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def from_json(data: Mapping[str, Any]) -> Evidence:
    """Read what `to_json` wrote; raises InvalidArgument for anything else."""
    if data.get("version") != VERSION:
        raise InvalidArgument(
            f"evidence has version {data.get('version')!r}, expected {VERSION}; build the engine again"
        )
    try:
        return _evidence(data)
    except (InvalidArgument, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidArgument(f"evidence can't be read: {error!r}; build the engine again") from None


def _evidence(data: Mapping[str, Any]) -> Evidence:
    accuracy, environment = data["accuracy"], data["environment"]
    calibration = data["calibration"]
    ceilings = data.get("ceilings")  # later than the version
    machine = environment["fingerprint"]
    return Evidence(
        buckets=tuple({name: tuple(shape) for name, shape in each.items()} for each in data["buckets"]),
        chosen=tuple(tactic_from_json(each) for each in data["chosen"]),
        timings=tuple(Timing(**{**each, **_tactics(each, "tactic", "against")}) for each in data["timings"]),
        accuracy=Accuracy(
            **{
                **accuracy,
                "interval": tuple(accuracy["interval"]) if accuracy["interval"] else None,
                "outputs": tuple(OutputError(**each) for each in accuracy["outputs"]),
            }
        ),
        environment=Environment(
            **{**environment, "fingerprint": Fingerprint(**{**machine, "features": tuple(machine["features"])})}
        ),
        seconds=data["seconds"],
        budget_seconds=data["budget_seconds"],
        lost=_left(data["lost"]),
        skipped=_left(data["skipped"]),
        refused=tuple(Refused(**{**each, **_tactics(each, "tactic")}) for each in data["refused"]),
        alone=tuple(Alone(**{**each, **_tactics(each, "tactic")}) for each in data.get("alone", [])),
        passes=tuple(PassRecord(**each) for each in data["passes"]),
        calibration=CalibrationRecord(**{**calibration, "methods": tuple(calibration["methods"])})
        if calibration
        else None,
        sensitivity=_sensitivity(data["sensitivity"]),
        mixed=_sensitivity(data.get("mixed")),
        ceilings=Ceilings(**{name: float(value) for name, value in ceilings.items()}) if ceilings else None,
        notes=tuple(data["notes"]),
    )


def _sensitivity(data: Mapping[str, Any] | None) -> SensitivityRecord | None:
    return SensitivityRecord(**{**data, "kept": tuple(data["kept"])}) if data else None


def _tactics(data: Mapping[str, Any], *names: str) -> dict[str, Tactic | None]:
    return {name: tactic_from_json(data[name]) if data[name] is not None else None for name in names}


def _left(data: Iterable[Mapping[str, Any]]) -> tuple[Left, ...]:
    return tuple(Left(**{**each, **_tactics(each, "tactic")}) for each in data)
