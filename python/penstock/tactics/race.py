"""The race: candidates timed one after the other at every bucket, within a budget; at any time there is a winner.

Each candidate is compiled in a process of its own and timed in turns with the best so far, so that the ratio of the
two counts and not what else the machine did meanwhile. What fails is lost with a reason, what can't win is left early,
and neither costs more than seconds. `confirm` then times the finalists side by side. Called by `build`.

Times at a bucket are on one scale: that of the first tactic timed there, times the ratios measured since.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

from penstock.engine.fingerprint import here
from penstock.engine.plan import CUDA, TUNED_STEPS, Fingerprint, Shapes, Tactic
from penstock.engine.runtimes.base import Arrays
from penstock.engine.runtimes.settings import on_gpu
from penstock.errors import InvalidArgument
from penstock.tactics.cache import TimingCache
from penstock.tactics.candidates import Form, candidates, one_thread, siblings
from penstock.tactics.child import CandidateLost, Limits
from penstock.tactics.ledger import Ledger, OnProgress
from penstock.tactics.results import Compiled, Measurement, Race, Skipped, Trying
from penstock.tactics.stable import Stable, program_key
from penstock.tactics.timer import QUALIFYING, Contender, Effort, compare, warm

_LOG = logging.getLogger(__name__)

# Beyond this a call is its own mean over much: two rounds tell what four do.
_SLOW_US: Final = 250_000.0
_SLOW_ROUNDS: Final = 2
# A first call that takes this many times the best one's, and the best's usual time, is not followed by a second ...
_HOPELESS_FIRST: Final = 5.0
# ... when it is also longer than this: small models take their time once, for buffers and code, and are fast then.
_HOPELESS_FIRST_US: Final = 250_000.0
# Seconds a first call may take however short the best one's is: a busy machine stalls for one now and then.
_FIRST_CALL_SECONDS: Final = 3.0
# A rough time this far from the best is out of reach of any drift between the two measurements.
_HOPELESS: Final = 2.5
# A program on a GPU this far ahead of the CPU's best need not wait for its calls to be sure.
_FAR_AHEAD: Final = 10.0
# A tactic this far behind where it matters most does not win elsewhere.
_FAR_BEHIND: Final = 3.0
# What static shapes give is less than this. Measured: up to 1.4 on transformers, next to nothing on convolutions.
_SIBLING_BEHIND: Final = 2.0
# Below this handing work to threads and waiting for them shows: some 10 us a layer, and small models have fifty.
_ONE_THREAD_BELOW_US: Final = 2_000.0
# While a bucket has no time at all, the race goes on this long after its budget: an engine needs one.
_EXTRA_SECONDS: Final = 60.0
_TUNING_GRACE_SECONDS: Final = 8.0
_LEAST_TUNING_SECONDS: Final = 4.0


def race(
    forms: Mapping[str, Form],
    buckets: Sequence[Shapes],
    sample_inputs: Callable[[Shapes], Arrays],
    *,
    allowed: Collection[str],
    budget_seconds: float,
    cache: TimingCache | None = None,
    memory_limit: int | None = None,
    on_progress: OnProgress | None = None,
    machine: Fingerprint | None = None,
    optimum: int = 0,
    tactics: Sequence[Tactic] | None = None,
    known: Race | None = None,
    limits: Limits | None = None,
    stable: Stable | None = None,
) -> Race:
    """Time the candidates for these forms at every bucket.

    sample_inputs   gives the inputs used at a bucket's shapes, the same for every candidate.
    allowed         precisions that may be used, of plan.PRECISIONS.
    budget_seconds  when it is over the race ends with what is known. Until the first tactic is timed at a bucket, and
                    for the winner of the optimum at the others, a minute more is given.
    cache           what is in it is not timed again; what is timed goes into it and is saved.
    memory_limit    bytes one candidate may take; None: a share of what is free.
    on_progress     told of every event, from this thread.
    optimum         the bucket that matters most: it is timed first, and who is hopeless there is not timed elsewhere.
    tactics         instead of `candidates` for the forms.
    known           a race over the same buckets that this one goes on with: its tactics are not timed again, its best
                    are who new ones are timed against. The forms of its tactics must be among `forms`.
    stable          whose processes are used, and stay alive for whoever owns it; None: one of this race alone.

    A candidate that fails is in `lost` and raises nothing. Raises InvalidArgument for a tactic whose form is not there.
    """
    machine = machine or here()
    order = list(tactics) if tactics is not None else candidates(forms, allowed, machine.features, buckets)
    for tactic in order:
        if tactic.form not in forms:
            raise InvalidArgument(f"{tactic.name}: no such form, there are {', '.join(forms)}")
    limits = limits or Limits(memory_bytes=memory_limit)
    with nullcontext(stable) if stable else Stable(forms, buckets, sample_inputs, limits) as processes:
        begun = known or Race(tuple(buckets))
        ledger = Ledger(begun, forms, processes.inputs, budget_seconds, cache, on_progress)
        running = _Race(ledger, processes, limits, optimum)
        running.all_of(order)
        if machine.cores > 1:
            running.all_of(running.worth_one_thread())
        return ledger.finish()


class _Race:
    """One race while it runs."""

    def __init__(self, ledger: Ledger, stable: Stable, limits: Limits, optimum: int) -> None:
        self._ledger = ledger
        self._stable = stable
        self._limits = limits
        self._optimum = optimum
        others = (bucket for bucket in range(len(ledger.known.buckets)) if bucket != optimum)
        self._buckets = (optimum, *others)
        self._first_us: dict[int, float] = {}  # by bucket, the shortest first call

    def all_of(self, tactics: Sequence[Tactic]) -> None:
        """Every tactic at every bucket, in order; without what is known already."""
        known = self._ledger.known
        lost = {each.tactic for each in known.lost}
        fresh = [tactic for tactic in tactics if tactic not in lost and self._unknown(tactic)]
        for number, tactic in enumerate(fresh, 1):
            self._ledger.tell(Trying(tactic, number, len(fresh)))
            for later in fresh[number:]:
                self._stable.expect(later)
            for bucket in self._unknown(tactic):
                self._one(tactic, bucket)

    def _unknown(self, tactic: Tactic) -> list[int]:
        """Buckets at which nobody timed it."""
        return [bucket for bucket in self._buckets if self._ledger.known.of(tactic, bucket) is None]

    def worth_one_thread(self) -> list[Tactic]:
        """The winners of buckets whose calls are so short that threads may cost more than they give."""
        winners = [self._ledger.best(bucket) for bucket in self._buckets]
        short = dict.fromkeys(each.tactic for each in winners if each and each.median_us < _ONE_THREAD_BELOW_US)
        return [one_thread(each) for each in short if each.threads == 0 and each.runtime != CUDA and not on_gpu(each)]

    def _one(self, tactic: Tactic, bucket: int) -> None:
        """One tactic at one bucket: timed, lost or skipped."""
        if self._stable.knows(tactic, bucket) and self._ledger.recall(tactic, bucket):
            return
        why = self._why_not(tactic, bucket)
        if why:
            self._ledger.skipped(Skipped(tactic, why, bucket))
            return
        try:
            self._qualify(tactic, bucket, self._ledger.best(bucket))
        except CandidateLost as error:
            if error.out_of_time and self._left(tactic, bucket) <= 0:  # its own fault or not, nobody knows
                self._ledger.skipped(Skipped(tactic, "the budget ended while it was tried", bucket))
            else:
                self._ledger.lost(replace(error.lost, bucket_index=bucket))

    def _left(self, tactic: Tactic, bucket: int) -> float:
        first, best = self._ledger.best(self._optimum), self._ledger.best(bucket)
        # The winner where it matters most is timed elsewhere, too, before the budget may end: else a bucket would be
        # left to whoever happened to be timed there. On a GPU each bucket needs a program of its own.
        if tactic.runtime == CUDA:
            rivals = (each.tactic for each in self._ledger.known.at(bucket))
            owed = all((each.runtime, each.precision) != (CUDA, tactic.precision) for each in rivals)
        else:
            owed = best is None or (first is not None and first.tactic == tactic)
        return self._ledger.left() + (_EXTRA_SECONDS if owed else 0.0)

    def _why_not(self, tactic: Tactic, bucket: int) -> str:
        """Why a tactic is not worth its time here; empty when it is."""
        if self._left(tactic, bucket) <= 0:
            return "no time was left"
        if self._ledger.left() < _LEAST_TUNING_SECONDS and not self._stable.knows(tactic, bucket):
            return "too little time was left to tune it"
        if bucket != self._optimum:
            why = self._behind(tactic)
            if why:
                return why
        best = self._ledger.best(bucket)
        for other in self._ledger.known.at(bucket):
            if best is None or not siblings(tactic, other.tactic):
                continue
            made = self._stable.made(other.tactic, bucket)
            if made is not None and made.fixed and other.tactic.shapes == "dynamic":
                return "the model takes no other shapes: the same as its dynamic sibling"
            ratio = other.median_us / best.median_us
            if ratio > _SIBLING_BEHIND:
                return f"its {other.tactic.shapes} sibling took {ratio:.1f} times as long as the best"
        return ""

    def _behind(self, tactic: Tactic) -> str:
        """Why what a tactic did at the optimum rules it out elsewhere; empty when it does not."""
        if any((each.tactic, each.bucket_index) == (tactic, self._optimum) for each in self._ledger.known.lost):
            return "it was lost at the bucket that matters most"
        measured, best = self._ledger.known.of(tactic, self._optimum), self._ledger.best(self._optimum)
        if measured is None or best is None or measured.median_us <= _FAR_BEHIND * best.median_us:
            return ""
        ratio = measured.median_us / best.median_us
        return f"it took {ratio:.1f} times as long as the best at the bucket that matters most"

    # ---- one candidate ----

    def _qualify(self, tactic: Tactic, bucket: int, best: Measurement | None) -> None:
        """Time a tactic at a bucket, against the best where there is one; raises CandidateLost."""
        contender = self._ready(tactic, bucket, best)
        first = self._first_us.get(bucket)
        if best is not None:
            usual = max(first or 0.0, best.median_us)
            if contender.first_us > max(_HOPELESS_FIRST * usual, _HOPELESS_FIRST_US):
                self._record(contender, Measurement(tactic, bucket, contender.first_us, 0.0, 1))
                return
        self._first_us[bucket] = min(first or contender.first_us, contender.first_us)
        warm(contender, QUALIFYING.warm_seconds)
        if best is None:
            self._alone(contender, QUALIFYING)
        elif contender.call_us > _HOPELESS * best.median_us:
            self._alone(contender, replace(QUALIFYING, rounds=2))
        elif _far_ahead(contender, best) or not self._against(contender, best):
            self._alone(contender, QUALIFYING)

    def _ready(self, tactic: Tactic, bucket: int, best: Measurement | None) -> Contender:
        """Compiled, loaded and called once, within limits that follow from what the best takes."""
        left = max(0.1, self._left(tactic, bucket))
        call = self._limits.call_seconds
        if best is not None:
            usual = max(self._first_us.get(bucket, 0.0), best.median_us) / 1e6
            call = min(call, max(_FIRST_CALL_SECONDS, 2 * _HOPELESS_FIRST * usual))
        compile_seconds = self._limits.start_seconds + self._limits.compile_seconds
        # Tuning ends when it is told to, and what it found is lost if it is stopped a moment before.
        grace = _TUNING_GRACE_SECONDS if tactic.options == TUNED_STEPS else 0.0
        return self._stable.contender(
            tactic, bucket, compile_seconds=min(compile_seconds, left + grace), call_seconds=min(call, left + grace)
        )

    def _against(self, contender: Contender, best: Measurement) -> bool:
        """Time in turns with the best so far; False when that one is not to be had."""
        bucket = contender.bucket
        try:
            alive = self._stable.alive(best.tactic, bucket)
            champion = self._ready(best.tactic, bucket, None)
            if not alive:
                warm(champion, QUALIFYING.warm_seconds)
        except CandidateLost as error:
            _LOG.warning("timed before, and now: %s", error)
            return False
        effort = replace(QUALIFYING, rounds=_SLOW_ROUNDS) if best.median_us > _SLOW_US else QUALIFYING
        compared = compare([champion, contender], effort, lambda: self._left(contender.tactic, bucket) > 0)
        for failure in compared.lost:
            if failure.lost.tactic == contender.tactic:
                raise failure
            _LOG.warning("timed before, and now: %s", failure)
            return False
        self._record(contender, compared.measurements[1].on_scale(best.median_us))
        return True

    def _alone(self, contender: Contender, effort: Effort) -> None:
        compared = compare([contender], effort, lambda: self._left(contender.tactic, contender.bucket) > 0)
        if compared.lost:
            raise compared.lost[0]
        self._record(contender, compared.measurements[0])

    def _record(self, contender: Contender, measurement: Measurement) -> None:
        tactic, bucket = contender.tactic, contender.bucket
        made = self._stable.made(tactic, bucket)
        assert made is not None
        best = self._ledger.best(bucket)
        compiled = Compiled(*program_key(tactic, bucket), made.seconds, max(made.bytes, contender.bytes))
        self._ledger.measured(measurement, compiled)
        # A static program is for this bucket alone: when it lost here, nobody asks for it again.
        if tactic.shapes == "static" and best is not None and measurement.median_us > best.median_us:
            self._stable.drop(tactic, bucket)


def _far_ahead(contender: Contender, best: Measurement) -> bool:
    devices = tuple(each.runtime == CUDA or on_gpu(each) for each in (contender.tactic, best.tactic))
    return devices == (True, False) and contender.call_us * _FAR_AHEAD < best.median_us
