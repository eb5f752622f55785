"""Verdicts on tactics: each is run in a child process on the inputs that judge it, once, and its verdict is kept.

A tactic is judged as its dynamic program: the same kernels, for inputs of any shape, as metrics want them. Where that
one fails, and a static program of the tactic answers much better on the same inputs, the library computes one of the
two wrongly: the static one then has a verdict of its own, as it will run, in full batches. What was made from
calibration data is judged on what that data left out, and then on the data. Called by the driver.
"""

import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from penstock import tactics
from penstock.build.evidence import Alone, Refused, finite, label
from penstock.build.forms import BESIDE, Forms, beside
from penstock.build.gate import Cosine, Gate, Judge, Verdict
from penstock.build.judging import (
    REFERENCE,
    Compared,
    Judges,
    Run,
    grossly_wrong,
    in_steps,
    judges,
    margin,
    much_nearer,
    reducing,
    reduction_microseconds,
    within,
)
from penstock.build.on_gpu import OnGpu
from penstock.build.one_shape import at_shapes, fits
from penstock.build.progress import Progress
from penstock.engine.plan import CUDA, SOURCE, Profile, Shapes, Tactic
from penstock.engine.routing import batched
from penstock.errors import InvalidArgument

_LOG = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]


def judged_as(tactic: Tactic) -> Tactic:
    """The tactic whose verdict holds for this one, too."""
    return replace(tactic, shapes="dynamic")


def _has_own_shapes(tactic: Tactic) -> bool:
    """Whether it may compute otherwise than its dynamic sibling. A GPU's programs are all static."""
    return tactic.shapes == "static" and tactic.runtime != CUDA


class Verdicts:
    """Those of one build, by tactic."""

    def __init__(
        self, forms: Forms, buckets: Sequence[Shapes], limits: tactics.Limits, gpu: OnGpu | None, progress: Progress
    ) -> None:
        self._forms = forms
        self._buckets = buckets
        self._batched = batched(forms.inputs, forms.outputs)
        self._limits = limits
        self._gpu = gpu
        self._progress = progress
        self._found: dict[Tactic, Verdict] = {}
        self._overruled: dict[Tactic, Verdict] = {}
        self._early: dict[Tactic, Verdict] = {}
        """Those of the first few inputs."""
        self._alone: dict[tuple[Tactic, int], Verdict] = {}
        """Of static programs that compute otherwise than the dynamic ones, by bucket."""
        self._unsound: dict[tuple[str, str], Verdict] = {}
        """By library and precision: why its static programs are not trusted, whose dynamic ones may be right."""
        self._alike: set[Tactic] = set()
        """Static tactics that compute as the dynamic ones, or can't be told apart."""
        self._trials = itertools.count()
        self._judging: Future[Judges]

    def set_up(self, gate: Gate, profiles: Iterable[Profile], inputs: Callable[[], Compared]) -> None:
        """Run the reference: now, or for a GPU's build on a thread, since the CPU has little to do there, and whoever
        asks for a verdict is told. Raises what a metric raises, and CandidateLost.
        """
        found = self._judging = Future()

        def look() -> None:
            try:
                found.set_result(self._of_reference(gate, profiles, inputs()))
            except BaseException as error:  # whoever waits for it is told
                found.set_exception(error)

        if self._gpu is not None and isinstance(gate, Cosine):  # a metric is the user's code, and runs where it began
            threading.Thread(target=look, name="penstock-reference", daemon=True).start()
        else:
            look()
            found.result()

    def _of_reference(self, gate: Gate, profiles: Iterable[Profile], inputs: Compared) -> Judges:
        with self.running(REFERENCE) as reference:
            run = within(profiles, reference)  # a metric brings inputs of its own: tell at once, not at the seal
            return judges(gate, run, inputs, self._forms.outputs)

    @property
    def _judges(self) -> Judges:
        return self._judging.result()

    @contextmanager
    def running(self, tactic: Tactic, bucket: int | None = None) -> Iterator[Run]:
        """A tactic in a child process, as a function of inputs, with what the engine would compute beside it.

        bucket  of a static tactic: its program for this one, which splits and pads as the engine does.
        """
        if tactic.runtime == CUDA and self._gpu is not None:
            with self._gpu.running(tactic, self._limits, self._forms.files[SOURCE]) as run:
                yield run
            return
        form, shapes = self._forms.files[tactic.form], self._buckets[bucket] if bucket is not None else None
        with tactics.compiled(tactic, form, shapes, limits=self._limits) as child:
            run = reducing(child.run, self._forms.reductions if beside(tactic.form) else ())
            yield run if bucket is None else self._in_batches(run, bucket)

    def _in_batches(self, run: Run, bucket: int) -> Run:
        return at_shapes(run, self._buckets[bucket], self._judges.inputs, batched=self._batched)

    def _fits(self, bucket: int) -> bool:
        """Whether a program of the bucket's shapes can run what judges it."""
        return fits(self._buckets[bucket], self._judges.inputs, batched=self._batched)

    def of(self, tactic: Tactic, bucket: int | None = None) -> Verdict:
        """The verdict on a tactic, now or as it was; with a bucket, on the program that runs there."""
        wanted = judged_as(tactic)
        if wanted not in self._found:
            self._progress.stage("gate", wanted.name)
            self._early[wanted], self._found[wanted] = self._now(wanted)
        if bucket is not None and self._may_differ(tactic, bucket):
            self._look_at(tactic, bucket)
        return self._standing(tactic, bucket) or self._found[wanted]

    def parted(self, race: tactics.Race) -> tuple[tactics.Race, list[tactics.Measurement]]:
        """A race without what is known to fail, so that nothing is called slow beside it; and what was taken out.

        At each bucket tactics are judged from the fastest on, until one passes. On a GPU nothing is judged.
        """
        if self._gpu is not None:
            return race, []
        for bucket in range(len(race.buckets)):
            any(self.of(each.tactic, bucket).passed for each in race.at(bucket))
        failed = [each for each in race.measurements if self.failed(each.tactic, each.bucket_index)]
        return replace(race, measurements=tuple(each for each in race.measurements if each not in failed)), failed

    def alone(self, tactic: Tactic, bucket: int | None) -> bool:
        """Whether its program at the bucket has a verdict of its own."""
        return bucket is not None and (tactic, bucket) in self._alone

    def _may_differ(self, tactic: Tactic, bucket: int) -> bool:
        """Only what failed by far is looked at again: not what was overruled since."""
        known = tactic in self._alike or self.alone(tactic, bucket)
        found = self._found.get(judged_as(tactic))
        return found is not None and _has_own_shapes(tactic) and not known and grossly_wrong(found)

    def _look_at(self, tactic: Tactic, bucket: int) -> None:
        """Judge the static program of a tactic that failed; once it turns out to be alike, it is not asked again."""
        before = self._early[judged_as(tactic)]
        if self._fits(bucket):
            self._progress.stage("gate", f"{tactic.name} at {label(self._buckets[bucket])}")
            try:
                with self.running(tactic, bucket) as run:
                    early, verdict = in_steps(
                        self._judges.first, self.judge(tactic), run, lambda early: much_nearer(early, before)
                    )
                if much_nearer(early, before):
                    self._alone[tactic, bucket] = verdict
                    return
            except (tactics.CandidateLost, InvalidArgument) as error:  # of a metric whose inputs have other shapes
                _LOG.info("%s: %s", tactic.name, error)
        self._alike.add(tactic)

    def tried(
        self,
        model: ir.Model,
        tactic: Tactic,
        add: Callable[[str, ir.Model], None] | None = None,
        *,
        bucket: int | None = None,
    ) -> Verdict:
        """The verdict on a graph that may become a form, run as the tactic says; not kept.

        add     puts a graph among the forms under a name; None: as one in FP32.
        bucket  whose static program it is; None: the dynamic one.
        """
        # A process may live on and know what it compiled by name.
        name = f"trial-{next(self._trials)}" + (BESIDE if self._forms.reductions else "")
        if add is not None:
            add(name, model)
        else:
            self._forms.add(name, model, precision="fp32")
        try:
            shapes: Literal["static", "dynamic"] = "dynamic" if bucket is None else "static"
            return self._now(replace(tactic, form=name, shapes=shapes), bucket)[1]
        finally:
            self._forms.files.pop(name).path.unlink(missing_ok=True)

    def reductions_beside(self, race: tactics.Race, at: Callable[[Shapes], Arrays]) -> list[float]:
        """Microseconds that NumPy takes for reductions, by bucket: none where no timed form leaves them to it.

        at  inputs of a bucket's shapes.
        """
        tactic = next((judged_as(each.tactic) for each in race.measurements if beside(each.tactic.form)), None)
        if tactic is None:
            return [0.0] * len(self._buckets)
        with tactics.compiled(tactic, self._forms.files[tactic.form], limits=self._limits) as child:
            outputs = [child.run(at(shapes)) for shapes in self._buckets]
        return [reduction_microseconds(each, self._forms.reductions) for each in outputs]

    def judge(self, *wanted: Tactic) -> Judge:
        """Who judges what these compute together."""
        return self._judges.learned if any(map(self._learned, wanted)) else self._judges.plain

    def _learned(self, tactic: Tactic) -> bool:
        return self._forms.files[tactic.form].learned or (tactic.precision in ("int8", "fp8") and tactic.form != SOURCE)

    def of_engine(self, chosen: Sequence[Tactic], run: Run) -> Verdict:
        """The verdict on a sealed engine with these tactics at its buckets: on inputs as they are, then at the shapes
        of every static program, on all inputs where that was judged by itself.
        """
        judge = self.judge(*chosen)
        verdict = judge(run)
        for bucket, tactic in enumerate(chosen):
            if not _has_own_shapes(tactic) or not self._fits(bucket):
                continue
            alone = self.alone(tactic, bucket)
            looked = judge if alone else self._judges.look
            other = looked(self._in_batches(run, bucket)) if looked is not None and verdict.passed else verdict
            if alone or not other.passed:
                verdict = min(verdict, other, key=margin)
        return verdict

    @property
    def samples(self) -> int:
        """How many inputs outputs are compared on."""
        return len(self._judges.inputs)

    def overrule(self, tactic: Tactic, verdict: Verdict, bucket: int | None = None) -> None:
        """Another verdict than was found: of something that was learned since."""
        if bucket is not None and self.alone(tactic, bucket):
            self._alone[tactic, bucket] = verdict
        else:
            self._overruled[judged_as(tactic)] = verdict

    def strike(self, chosen: Sequence[Tactic], verdict: Verdict) -> None:
        """A sealed engine of these tactics fails. Static programs that fail by themselves, too, are out, and with them
        what the library compiles for one shape in that precision at all; without any, all of the tactics.
        """
        programs = list(enumerate(chosen))
        guilty = [
            (bucket, tactic) for bucket, tactic in programs if self._gpu is None and self._fails_at(tactic, bucket)
        ]
        for bucket, tactic in guilty:
            self._alone[tactic, bucket] = self._unsound[tactic.runtime, tactic.precision] = verdict
        if not guilty:
            for bucket, tactic in programs:
                self.overrule(tactic, verdict, bucket)

    def _fails_at(self, tactic: Tactic, bucket: int) -> bool:
        if not _has_own_shapes(tactic) or not self._fits(bucket):
            return False
        self._progress.stage("gate", f"{tactic.name} at {label(self._buckets[bucket])}")
        try:
            return not self._now(tactic, bucket)[1].passed
        except InvalidArgument:  # of a metric whose inputs have other shapes
            return False

    def failed(self, tactic: Tactic, bucket: int, *, look: bool = False) -> bool:
        """Known to fail at the bucket; what was not judged yet has not.

        look  find out where a dynamic program failed and nobody has asked whether the static one computes otherwise.
        """
        verdict = self._standing(tactic, bucket)
        if verdict is None or verdict.passed:
            return False
        return not self.of(tactic, bucket).passed if look else not self._may_differ(tactic, bucket)

    def _standing(self, tactic: Tactic, bucket: int | None) -> Verdict | None:
        own = self._alone.get((tactic, bucket)) if bucket is not None else None
        unsound = self._unsound.get((tactic.runtime, tactic.precision)) if _has_own_shapes(tactic) else None
        return own or unsound or self.standing.get(judged_as(tactic))

    @property
    def found(self) -> Mapping[Tactic, Verdict]:
        """As they were judged."""
        return self._found

    @property
    def standing(self) -> Mapping[Tactic, Verdict]:
        """Those that hold."""
        return {**self._found, **self._overruled}

    @property
    def refused(self) -> tuple[Refused, ...]:
        """Those that fail, for evidence."""
        return tuple(
            Refused(tactic, each.measured if math.isfinite(each.measured) else None, each.message)
            for tactic, each in self.standing.items()
            if not each.passed
        )

    @property
    def judged_alone(self) -> tuple[Alone, ...]:
        """Static programs with verdicts of their own, for evidence."""
        return tuple(
            Alone(tactic, bucket, each.passed, finite(each.measured), each.message)
            for (tactic, bucket), each in self._alone.items()
        )

    def _now(self, tactic: Tactic, bucket: int | None = None) -> tuple[Verdict, Verdict]:
        """On the first few inputs, and on all."""
        try:
            with self.running(tactic, bucket) as run:
                return in_steps(self._judges.first, self.judge(tactic), run)
        except tactics.CandidateLost as error:
            verdict = Verdict(False, math.nan, math.nan, message=error.lost.reason)
            return verdict, verdict
