"""Verdicts on tactics: each is run in a child process on the inputs that judge it, once, and its verdict is kept.

A tactic is judged as its dynamic program: the same kernels, for inputs of any shape, as metrics want them. What was
made from calibration data is judged on what that data left out, and then on the data. Called by the driver.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from penstock import tactics
from penstock.build.evidence import Refused
from penstock.build.forms import BESIDE, Forms, beside
from penstock.build.gate import Cosine, Gate, Judge, Verdict
from penstock.build.judging import REFERENCE, Compared, Judges, Run, judges, of_trials, reducing, within
from penstock.build.on_gpu import OnGpu
from penstock.build.progress import Progress
from penstock.engine.plan import CUDA, SOURCE, Profile, Tactic

Arrays = Mapping[str, NDArray[Any]]


def judged_as(tactic: Tactic) -> Tactic:
    """The tactic whose verdict holds for this one, too."""
    return replace(tactic, shapes="dynamic")


class Verdicts:
    """Those of one build, by tactic."""

    def __init__(self, forms: Forms, limits: tactics.Limits, gpu: OnGpu | None, progress: Progress) -> None:
        self._forms = forms
        self._limits = limits
        self._gpu = gpu
        self._progress = progress
        self._found: dict[Tactic, Verdict] = {}
        self._overruled: dict[Tactic, Verdict] = {}
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
    def running(self, tactic: Tactic) -> Iterator[Run]:
        """A tactic in a child process, as a function of inputs, with what the engine would compute beside it."""
        if tactic.runtime == CUDA and self._gpu is not None:
            with self._gpu.running(tactic, self._limits, self._forms.files[SOURCE]) as run:
                yield run
            return
        with tactics.compiled(tactic, self._forms.files[tactic.form], limits=self._limits) as child:
            yield reducing(child.run, self._forms.reductions if beside(tactic.form) else ())

    def of(self, tactic: Tactic) -> Verdict:
        """The verdict on a tactic, now or as it was."""
        wanted = judged_as(tactic)
        if wanted not in self._found:
            self._progress.stage("gate", wanted.name)
            self._found[wanted] = self._now(wanted, self.judge(wanted))
        return self._overruled.get(wanted, self._found[wanted])

    def tried(self, model: ir.Model, tactic: Tactic, add: Callable[[str, ir.Model], None] | None = None) -> Verdict:
        """The verdict on a graph that may become a form, run as the tactic says; not kept.

        add  puts a graph among the forms under a name; None: as one in FP32.
        """
        # A process may live on and know what it compiled by name.
        name = f"trial-{next(self._trials)}" + (BESIDE if self._forms.reductions else "")
        if add is not None:
            add(name, model)
        else:
            self._forms.add(name, model, precision="fp32")
        try:
            wanted = replace(judged_as(tactic), form=name)
            return self._now(wanted, of_trials(self._judges.first, self.judge(wanted)))
        finally:
            self._forms.files.pop(name).path.unlink(missing_ok=True)

    def judge(self, *wanted: Tactic) -> Judge:
        """Who judges what these compute together."""
        narrow = any(tactic.precision in ("int8", "fp8") and tactic.form != SOURCE for tactic in wanted)
        return self._judges.learned if narrow else self._judges.plain

    @property
    def samples(self) -> int:
        """How many inputs outputs are compared on."""
        return self._judges.samples

    def overrule(self, tactic: Tactic, verdict: Verdict) -> None:
        """Another verdict than was found: of something that was learned since."""
        self._overruled[judged_as(tactic)] = verdict

    def failed(self, tactic: Tactic) -> bool:
        """Known to fail; what was not judged yet has not."""
        verdict = self.standing.get(judged_as(tactic))
        return verdict is not None and not verdict.passed

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

    def _now(self, tactic: Tactic, judge: Judge) -> Verdict:
        try:
            with self.running(tactic) as run:
                return judge(run)
        except tactics.CandidateLost as error:
            return Verdict(False, math.nan, math.nan, message=error.lost.reason)
