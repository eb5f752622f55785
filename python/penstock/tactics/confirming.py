"""The final: the best few timed again side by side, longer, so that the chosen one is the best and not the luckiest.

Finalists run in turns in the same rounds until their order is certain or the rounds are over; more than there are
places run in heats that the winner goes through to the last. The times are those of these rounds, and what was timed
before at the bucket is brought to their scale. Called by `build` once the race is over.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from penstock.engine.plan import Shapes, Tactic
from penstock.engine.runtimes.base import Arrays
from penstock.tactics.cache import TimingCache
from penstock.tactics.candidates import Form
from penstock.tactics.child import CandidateLost, Limits
from penstock.tactics.ledger import Ledger, OnProgress
from penstock.tactics.results import Measurement, Race
from penstock.tactics.stable import PLACES, Stable
from penstock.tactics.timer import CONFIRMING, Contender, compare, warm


def confirm(
    found: Race,
    tactics: Iterable[Tactic],
    buckets: Sequence[int],
    forms: Mapping[str, Form],
    sample_inputs: Callable[[Shapes], Arrays],
    *,
    budget_seconds: float,
    cache: TimingCache | None = None,
    memory_limit: int | None = None,
    on_progress: OnProgress | None = None,
    limits: Limits | None = None,
    stable: Stable | None = None,
) -> Race:
    """The race with these tactics timed again at these buckets.

    A tactic that was not timed at a bucket is left out there. Where all of them are confirmed already nothing is done.
    Those that fail now are lost. When the budget ends first, what was confirmed counts and the notes say what was not.
    """
    chosen = frozenset(tactics)
    limits = limits or Limits(memory_bytes=memory_limit)
    with nullcontext(stable) if stable else Stable(forms, found.buckets, sample_inputs, limits) as processes:
        ledger = Ledger(found, forms, processes.inputs, budget_seconds, cache, on_progress)
        final = _Final(ledger, processes, limits)
        for bucket in buckets:
            final.at(bucket, [each for each in ledger.known.at(bucket) if each.tactic in chosen])
        return ledger.finish()


class _Final:
    def __init__(self, ledger: Ledger, stable: Stable, limits: Limits) -> None:
        self._ledger = ledger
        self._stable = stable
        self._limits = limits

    def at(self, bucket: int, before: Sequence[Measurement]) -> None:
        """Confirm these, fastest first, at one bucket."""
        if all(each.confirmed for each in before):
            return
        waiting = [each.tactic for each in before]
        confirmed: dict[Tactic, Measurement] = {}
        while waiting and self._ledger.left() > 0:
            winner = min(confirmed.values(), key=lambda each: each.median_us, default=None)
            heat = [winner.tactic] if winner else []
            heat += [waiting.pop(0) for _ in range(min(PLACES - len(heat), len(waiting)))]
            measured = self._heat(heat, bucket)
            # The winner of the heats before sets the scale of this one, where it is still there.
            again = next((each for each in measured if winner and each.tactic == winner.tactic), None)
            scale = winner.median_us / again.median_us if winner and again else 1.0
            confirmed |= {each.tactic: each.scaled(scale) for each in measured}
            for tactic in heat:  # what failed in this heat is out, whatever it did in those before
                if all(each.tactic != tactic for each in measured):
                    confirmed.pop(tactic, None)
        if waiting:
            self._ledger.note(f"the budget ended before {len(waiting)} finalists of bucket {bucket} were confirmed")
        if not confirmed:
            return
        winner = min(confirmed.values(), key=lambda each: each.median_us)
        old = next(each.median_us for each in before if each.tactic == winner.tactic)
        self._ledger.rescale(bucket, winner.median_us / old)
        for each in confirmed.values():
            self._ledger.measured(replace(each, confirmed=True))

    def _heat(self, tactics: Sequence[Tactic], bucket: int) -> list[Measurement]:
        """Measurements of those that ran, on the scale of the first of them."""
        contenders: list[Contender] = []
        for tactic in tactics:
            try:
                contenders.append(self._ready(tactic, bucket))
            except CandidateLost as error:
                self._failed(error, bucket)
        if not contenders:
            return []
        compared = compare(contenders, CONFIRMING, lambda: self._ledger.left() > 0)
        for failure in compared.lost:
            self._failed(failure, bucket)
        if not compared.measurements:
            return []
        reference = compared.measurements[0].median_us
        return [each.on_scale(reference) for each in compared.measurements]

    def _ready(self, tactic: Tactic, bucket: int) -> Contender:
        left = max(0.1, self._ledger.left())
        compile_seconds = min(self._limits.start_seconds + self._limits.compile_seconds, left)
        call_seconds = min(self._limits.call_seconds, left)
        contender = self._stable.contender(tactic, bucket, compile_seconds=compile_seconds, call_seconds=call_seconds)
        warm(contender, CONFIRMING.warm_seconds)
        return contender

    def _failed(self, error: CandidateLost, bucket: int) -> None:
        """It ran before and fails now: nothing to build on, unless only the time was short."""
        if not (error.out_of_time and self._ledger.left() <= 0):
            self._ledger.lost(replace(error.lost, bucket_index=bucket))
