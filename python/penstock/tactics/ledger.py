"""The ledger of a race: what is known so far, told to whoever follows, and kept in the timing cache.

Every event of a race passes through here once, so that the Race, the progress and the cache never disagree.
Called by `race` and `confirming`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from penstock.engine.plan import Tactic
from penstock.engine.runtimes.base import Arrays
from penstock.tactics.cache import Chosen, Loss, Timing, TimingCache, content_hash
from penstock.tactics.candidates import Form
from penstock.tactics.results import Compiled, Lost, Measurement, Progress, Race, Skipped
from penstock.tactics.stable import program_key
from penstock.tensors import datatype_of

OnProgress = Callable[[Progress], None]


class Ledger:
    """One race being written down."""

    def __init__(
        self,
        known: Race,
        forms: Mapping[str, Form],
        inputs: Callable[[int], Arrays],
        budget_seconds: float,
        cache: TimingCache | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.known = known
        self._forms = forms
        self._inputs = inputs
        self._begun = time.monotonic()
        self._budget = budget_seconds
        self._cache = cache
        self.tell: OnProgress = on_progress or (lambda _: None)
        self._hashes: dict[str, str] = {}

    def left(self) -> float:
        """Seconds of the budget that are left; negative when it is over."""
        return self._begun + self._budget - time.monotonic()

    def best(self, bucket: int) -> Measurement | None:
        return next(iter(self.known.at(bucket)), None)

    def finish(self) -> Race:
        """What is known, with the cache saved."""
        if self._cache is not None:
            self._cache.save()
            if self._cache.warning and self._cache.warning not in self.known.notes:
                self.note(self._cache.warning)
        return replace(self.known, seconds=self.known.seconds + time.monotonic() - self._begun)

    def measured(self, measurement: Measurement, compiled: Compiled | None = None) -> None:
        """A tactic was timed. `compiled` is what its program took, where that is news."""
        if compiled is not None:
            self._compiled(compiled)
        self._keep(measurement)
        if self._cache is None:
            return
        program = program_key(measurement.tactic, measurement.bucket_index)
        made = next((each for each in self.known.compiled if (each.tactic, each.bucket_index) == program), None)
        timing = Timing(
            measurement.median_us,
            measurement.spread_us,
            measurement.samples,
            made.seconds if made else 0.0,
            made.bytes if made else 0,
            measurement.confirmed,
        )
        self._cache.put(self._key(measurement.tactic, measurement.bucket_index), timing)

    def lost(self, lost: Lost) -> None:
        """A tactic can't be used at a bucket. What it was timed before, there, is struck out."""
        assert lost.bucket_index is not None
        place = lost.tactic, lost.bucket_index
        kept = tuple(each for each in self.known.measurements if (each.tactic, each.bucket_index) != place)
        self.known = replace(self.known, measurements=kept, lost=(*self.known.lost, lost))
        self.tell(lost)
        if self._cache is not None and not lost.cached:
            self._cache.put(self._key(*place), Loss(lost.reason))

    def skipped(self, skipped: Skipped) -> None:
        self.known = replace(self.known, skipped=(*self.known.skipped, skipped))
        self.tell(skipped)

    def note(self, text: str) -> None:
        self.known = replace(self.known, notes=(*self.known.notes, text))

    def rescale(self, bucket: int, factor: float) -> None:
        """Bring the times at a bucket to another scale: the machine is that much slower than when they were taken."""
        scaled = [each.scaled(factor) for each in self.known.at(bucket)]
        self.known = self.known.with_measurements(scaled)

    def recall(self, tactic: Tactic, bucket: int) -> bool:
        """Take what the cache knows of a tactic at a bucket; False when it knows nothing."""
        entry = self._cache.get(self._key(tactic, bucket)) if self._cache is not None else None
        if entry is None or isinstance(entry, Chosen):  # keys of choices are never those of tactics
            return False
        self.known = replace(self.known, cache_hits=self.known.cache_hits + 1)
        if isinstance(entry, Loss):
            self.lost(Lost(tactic, entry.reason, bucket, cached=True))
            return True
        program = program_key(tactic, bucket)
        if all((each.tactic, each.bucket_index) != program for each in self.known.compiled):
            self._compiled(Compiled(*program, entry.seconds, entry.bytes))
        measurement = Measurement(
            tactic, bucket, entry.median_us, entry.spread_us, entry.samples, confirmed=entry.confirmed, cached=True
        )
        self._keep(measurement)
        return True

    def _keep(self, measurement: Measurement) -> None:
        """In place of why it was passed over before."""
        place = measurement.tactic, measurement.bucket_index
        skipped = tuple(each for each in self.known.skipped if (each.tactic, each.bucket_index) != place)
        self.known = replace(self.known, skipped=skipped).with_measurements([measurement])
        self.tell(measurement)

    def _compiled(self, compiled: Compiled) -> None:
        place = compiled.tactic, compiled.bucket_index
        others = (each for each in self.known.compiled if (each.tactic, each.bucket_index) != place)
        self.known = replace(self.known, compiled=(*others, compiled))

    def _key(self, tactic: Tactic, bucket: int) -> str:
        assert self._cache is not None
        if tactic.form not in self._hashes:
            self._hashes[tactic.form] = content_hash(self._forms[tactic.form].path)
        datatypes = {name: datatype_of(array.dtype) for name, array in self._inputs(bucket).items()}
        return self._cache.key(self._hashes[tactic.form], self.known.buckets[bucket], datatypes, tactic)
