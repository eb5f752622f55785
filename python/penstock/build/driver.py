"""The driver: a model in, a sealed engine out, inside an accuracy budget and a time budget.

The order is in docs/decisions/0003: forms in FP32, race, gate; sixteen bits with layers in FP32; with calibration data
INT8 forms, race, gate, and the search for layers to keep in a wider type; then the finalists are timed side by side,
programs are selected and sealed, and the sealed engine is gated once more. An engine that fails is never handed out.

Libraries run in child processes until something is sealed. Called by `entry`.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from penstock import graph, quantize, tactics
from penstock.build import budget, custom_ops, evidence, mixing
from penstock.build.budget import Budget
from penstock.build.calibrating import left_in_float, out_of_reach, picked, worth_a_gate
from penstock.build.evidence import CalibrationRecord, Evidence, SensitivityRecord
from penstock.build.forms import BESIDE, add_fp8, add_int8, add_lowered, beside, prepare
from penstock.build.gate import Metric, Verdict
from penstock.build.judging import REFERENCE, Run, calling, settled, to_compare, well_inside
from penstock.build.on_gpu import STEPS_FP8, OnGpu, import_ahead, multiplies_rows, why_not
from penstock.build.options import AUTO, BuildOptions, allowed, buckets, profiles
from penstock.build.progress import Progress
from penstock.build.samples import Samples
from penstock.build.sealing import Draft, Sealing
from penstock.build.selection import Candidate, Selection, select, untried_siblings
from penstock.build.shapes import distinct, free_shapes
from penstock.build.target import target
from penstock.build.verdicts import Verdicts, judged_as
from penstock.engine import Engine, fingerprint
from penstock.engine.plan import CUDA, LOWERED, OPTIMIZED, SOURCE, Tactic
from penstock.engine.routing import batched
from penstock.engine.runtimes import LIBRARIES
from penstock.errors import AccuracyError, Internal, InvalidArgument, ModelLoadError, Unsupported
from penstock.quantize import Calibration, Recipe
from penstock.tactics import Form, Race

_LOG = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]
Picking = Callable[[Sequence[Tactic]], list[Tactic]]

# Tactics of a bucket that are timed side by side at the end.
_MOST_FINALISTS: Final = 4
_OPTIMUM: Final = 0  # its place among the buckets


class Build:
    """One build: what is known so far, and the steps that add to it."""

    def __init__(self, path: Path, folder: Path, options: BuildOptions, progress: Progress) -> None:
        self._budget = Budget(options.budget_seconds)
        self._path = path
        self._folder = folder
        self._options = options
        self._progress = progress
        self._allowed = frozenset(allowed(options.precision))
        self._machine = fingerprint.here(LIBRARIES, target(options.device))
        self._cache = tactics.TimingCache(options.timing_cache, self._machine) if options.timing_cache else None
        self._limits = tactics.Limits()
        self._calibration: CalibrationRecord | None = None
        self._sensitivity: SensitivityRecord | None = None
        self._mix: mixing.Mix | None = None
        self._notes: list[str] = []
        self._gated = False
        self._first: list[tactics.Child] = []
        self._processes: tactics.Stable | None = None
        """Of a GPU's build, all of them from the first to the last."""

    def run(self) -> Engine:
        """All steps, in order."""
        try:
            return self._run()
        finally:
            self._end_processes()

    def _run(self) -> Engine:
        self._prepare()
        begun = self._usable() if self._on_gpu else None
        self._race = self._raced(self._forms.files, self._first_share, begun)
        for bucket in range(len(self._buckets)):
            tactics.best(self._race, bucket)  # raises with the reasons where no library runs the model
        self._set_up_gate()
        if self._on_gpu:
            self._widen()
        else:  # before eight bits, which take what time there is, and mostly fail where sixteen do
            self._add_mixed()
            self._add_siblings()
        if self._quantizes and self._worth_quantizing():
            self._add_quantized()
        self._beside_microseconds = self._verdicts.reductions_beside(self._race, self._samples.at)
        self._confirm()
        sealing = Sealing(
            self._path.stem, self._forms, self._profiles, self._buckets, self._samples, self._machine,
            self._options.to_json(), self._limits, self._custom_ops, self._options.workspace_bytes, self._processes,
        )  # fmt: skip
        for attempt in itertools.count():
            selection = self._accepted()
            self._progress.stage("seal", ", ".join(sorted({tactic.name for tactic in selection.tactics})))
            folder = self._folder / f"sealing-{attempt}"
            folder.mkdir()
            draft = sealing.draft(selection, folder, self._race.bytes_of)
            made = draft.seal(self._evidence(selection, self._verdicts.of(selection.tactics[0], 0), draft))
            verdict = self._verdicts.of_engine(selection.tactics, calling(made))
            if verdict.passed:
                return draft.sealed_again(made, self._evidence(selection, verdict, draft))
            made.close()
            _LOG.warning("sealed engine refused: %s", verdict.message)
            self._verdicts.strike(selection.tactics, verdict)
            if self._budget.left and not self._on_gpu:  # what is left was slow beside it, or left out for it
                self._confirm()
        raise AssertionError("every attempt strikes out a tactic")

    # ---- preparation ----

    def _prepare(self) -> None:
        options = self._options
        self._first = OnGpu.first(self._allowed, self._limits, self._folder) if self._on_gpu else []
        self._progress.stage("optimize", self._path.name)
        prepared = custom_ops.prepare(self._path, self._folder, options, self._limits)
        self._path, self._custom_ops = prepared.path, prepared.operators
        if self._custom_ops:
            self._cache = None  # keys know graphs, and nothing of what a function does
            if options.calibration is not None and "int8" in self._allowed:
                self._notes.append("the model has custom operators, so INT8 was not tried")
        model = graph.load(self._path)
        self._notes += graph.mend_outputs(model)
        for text in options.preprocess:
            model = graph.boundary.preprocess(model, text)
        inputs = graph.signature(model)[0]
        self._profiles = profiles(options, inputs)
        self._free_shapes = free_shapes(self._profiles)
        # The shapes to be fastest at come first: that is where the race spends its time and drops who can't win.
        every = (each for profile in self._profiles for each in buckets(options, inputs, profile))
        self._buckets = distinct([*(each.optimum for each in self._profiles), *every])
        self._data = quantize.load(options.calibration, inputs) if options.calibration is not None else None
        # What calibration sees and what candidates are judged on have no sample in common.
        none: tuple[Calibration | None, Calibration | None] = (None, None)
        self._learned, self._unseen = self._data.split() if self._data is not None else none
        self._samples = Samples(inputs, list(self._unseen) if self._unseen is not None else None)
        self._forms = prepare(model, self._folder, reduce=options.reduce, profiles=self._profiles, on_gpu=self._on_gpu)
        self._notes += settled(self._samples, self._forms.files[SOURCE], self._buckets, self._limits)
        if self._on_gpu:
            self._lower()

    def _lower(self) -> None:
        """Steps for the GPU, and how long to tune them for."""
        apart = batched(self._forms.inputs, self._forms.outputs)
        self._gpu = OnGpu(self._buckets, apart, self._allowed, self._options.contexts)
        self._processes = self._gpu.start(self._forms.files, self._samples.at, self._limits, self._first)
        self._set_up_gate()
        self._progress.stage("lower", f"{len(self._buckets)} buckets")
        try:
            if self._custom_ops:
                raise Unsupported("custom operators are Python functions, which run on the CPU; build for device cpu")
            form = add_lowered(self._forms, self._buckets)
        except (Unsupported, ModelLoadError, InvalidArgument, Internal) as error:
            if self._options.device != AUTO:
                raise
            self._take_the_cpu(error.message)
            self._gated = False
            return
        if self._options.workspace_bytes is not None:
            self._gpu.check_workspace(form, self._options.workspace_bytes)
        self._tune(form, self._first_share)
        if self._free_shapes:
            self._notes.append("shapes other than the buckets' run on the CPU; give a profile for each that counts")

    def _usable(self) -> Race:
        """A race of what is there within seconds; where it passes the gate it could be sealed from now on."""
        race = self._raced(self._forms.files, self._first_share, only=self._gpu.plain)
        fastest = self._gpu.fastest(race.at(_OPTIMUM))
        if fastest is not None and self._verdicts.of(fastest).passed:
            self._progress.stage("usable", fastest.name)
        import_ahead()  # not before: it would hold up this thread
        return race

    def _widen(self) -> None:
        """Wider types where the narrow ones fail the gate."""
        for precision in self._gpu.precisions:
            if precision != self._gpu.precision:
                self._gpu.precision = precision
                self._race = self._raced(self._forms.files, budget.WIDER, self._race)
            fastest = self._gpu.fastest(self._race.at(_OPTIMUM))
            if fastest is not None and self._verdicts.of(fastest).passed:
                return
        why = why_not(self._race, self._verdicts.found)
        if self._options.device != AUTO:
            raise AccuracyError(f"no program for the GPU passes {self._options.gate.text}: {why}")
        self._take_the_cpu(f"no program for the GPU passes: {why}")
        self._race = self._raced(self._forms.files, self._first_share)

    def _take_the_cpu(self, why: str) -> None:
        """Where nobody asked for a GPU by name, one that can't be used is no reason to fail."""
        self._notes.append(f"built for the CPU: {why}")
        self._machine = fingerprint.here(LIBRARIES)
        self._forms.files.pop(LOWERED, None)
        self._end_processes()

    def _end_processes(self) -> None:
        for each in self._first:
            each.close()
        if self._processes is not None:
            self._processes.close()
        self._first, self._processes = [], None

    @property
    def _on_gpu(self) -> bool:
        return fingerprint.kind(self._machine) == CUDA

    @property
    def _quantizes(self) -> bool:
        narrow = {"int8", "fp8"} if self._on_gpu else {"int8"}
        return self._data is not None and not narrow.isdisjoint(self._allowed) and not self._custom_ops

    def _tune(self, form: Form, share: float) -> None:
        self._gpu.narrows = self._quantizes
        self._notes += self._gpu.tune_for(form, self._budget.seconds, self._budget.left, share, self._cache)

    # ---- timing ----

    def _raced(
        self, forms: Mapping[str, Form], share: float, known: Race | None = None, only: Picking | None = None
    ) -> Race:
        """Time every tactic for these forms, or some; with what is `known` of others it is one race, and one scale.
        What is known to fail is no measure of what is slow.
        """
        wanted = (
            self._gpu.tactics(forms, free_shapes=self._free_shapes)
            if self._on_gpu
            else tactics.candidates(forms, self._allowed, self._machine.features, self._buckets)
        )
        wanted = only(wanted) if only is not None else wanted
        if known is not None and self._on_gpu:  # what was tuned for some buckets had its time
            wanted = [each for each in wanted if all(each != timed.tactic for timed in known.measurements)]
        if known is not None and not wanted:
            return known
        known, failed = self._verdicts.parted(known) if known is not None else (None, [])
        self._progress.stage("race", ", ".join(dict.fromkeys(tactic.form for tactic in wanted)))
        seconds = self._gpu.race_seconds(self._budget.left, share) if self._on_gpu else self._budget.share(share)
        found = tactics.race(
            self._forms.files, self._buckets, self._samples.at, machine=self._machine, allowed=self._allowed,
            budget_seconds=max(1.0, seconds), cache=self._cache, on_progress=self._progress.racing, optimum=_OPTIMUM,
            tactics=wanted, known=known, stable=self._processes,
        )  # fmt: skip
        if self._on_gpu and self._cache is not None:
            for name in (each for each in forms if each.startswith(LOWERED)):
                self._gpu.remember(self._forms.files[name], self._cache)
        return replace(found, measurements=(*found.measurements, *failed))

    def _add_siblings(self) -> None:
        """Programs for one shape of what would be chosen now, and for all, where nobody had the time for both."""
        if self._budget.left:
            only = partial(untried_siblings, race=self._verdicts.parted(self._race)[0])
            self._race = self._raced(self._forms.files, budget.SIBLINGS, self._race, only)

    @property
    def _first_share(self) -> float:
        return (budget.TUNE if self._on_gpu else budget.FLOAT) if self._quantizes else 1 - budget.CONFIRM

    def _confirm(self) -> None:
        """Time the best few side by side, so that what is chosen is the best and not the luckiest."""
        near = OnGpu.finalist_ratio if self._on_gpu else tactics.FINALIST_RATIO
        if not self._on_gpu:
            self._add_siblings()
        for bucket in range(len(self._buckets)):
            seconds = max(1.0, self._budget.share(budget.CONFIRM) / (len(self._buckets) - bucket))
            found = tactics.finalists(self._verdicts.parted(self._race)[0], bucket, near)
            few = [each for each in found if not self._verdicts.failed(each, bucket, look=True)]
            few = mixing.with_mix(few[:_MOST_FINALISTS], self._race.at(bucket))
            if len(few) < 2:
                continue
            self._progress.stage("confirm", evidence.label(self._buckets[bucket]))
            self._race = tactics.confirm(
                self._race, few, [bucket], self._forms.files, self._samples.at,
                budget_seconds=min(seconds, OnGpu.confirm_seconds) if self._on_gpu else seconds,
                cache=self._cache, on_progress=self._progress.racing, stable=self._processes,
            )  # fmt: skip

    # ---- accuracy ----

    def _set_up_gate(self) -> None:
        if self._gated:
            return
        self._gated = True
        self._progress.stage("reference", self._options.gate.text)
        gpu = self._gpu if self._on_gpu else None
        self._verdicts = Verdicts(self._forms, self._buckets, self._limits, gpu, self._progress)
        # On a GPU the reference is run beside everything else, and waited for.
        seconds = self._budget.share(budget.FURTHER_INPUTS) if gpu is None else 0.0
        fitted = gpu.as_prepared if gpu is not None else None
        self._verdicts.set_up(
            self._options.gate, self._profiles,
            lambda: to_compare(self._samples, self._buckets, self._learned or (), seconds, fitted),
        )  # fmt: skip

    def _accepted(self) -> Selection:
        """The fastest selection whose every tactic passes the gate; only what would be chosen is judged."""
        while True:
            selection = self._selected()
            programs: list[tuple[int | None, Tactic | None]] = [*enumerate(selection.tactics), (None, selection.rest)]
            if all(tactic is None or self._passes(tactic, bucket) for bucket, tactic in programs):
                return selection

    def _passes(self, tactic: Tactic, bucket: int | None) -> bool:
        verdict = self._verdicts.of(tactic, bucket)
        alone = self._verdicts.alone(tactic, bucket)
        if verdict.passed and self._mix is not None and self._mix.inside and not alone:
            mixes = {each.tactic for each in self._race.measurements if mixing.is_mix(each.tactic)}
            of_mixes = [self._times(each) for each in mixes if self._verdicts.of(each).passed]
            found = self._verdicts.found
            verdict = mixing.passed_over(judged_as(tactic), found, self._times(tactic), of_mixes)
            self._verdicts.overrule(tactic, verdict)
        return verdict.passed

    def _selected(self) -> Selection:
        candidates = [
            Candidate(tactic, times, self._race.bytes_of(tactic))
            for tactic in dict.fromkeys(each.tactic for each in self._race.measurements)
            if any(times := self._usable_times(tactic))
        ]
        # On a GPU programs hold about the same, and what they hold is known when they are sealed.
        limit = self._options.workspace_bytes if not self._on_gpu else None
        selection = select(candidates, len(self._buckets), free_shapes=self._free_shapes, workspace_bytes=limit)
        if selection is not None:
            return selection
        if candidates and limit is not None:
            raise InvalidArgument(f"no set of programs fits into a workspace of {limit} bytes; allow more")
        if not self._on_gpu and not self._race.tried(REFERENCE):  # some models bear no rounding but the file's own
            self._race = self._raced(self._forms.files, 0.0, self._race, lambda _: [REFERENCE])
            return self._selected()
        worst = "; ".join(f"{tactic.name}: {each.message}" for tactic, each in self._verdicts.standing.items())
        raise AccuracyError(f"nothing that runs passes {self._options.gate.text}: {worst}")

    def _usable_times(self, tactic: Tactic) -> tuple[float | None, ...]:
        return tuple(None if self._verdicts.failed(tactic, at) else us for at, us in enumerate(self._times(tactic)))

    def _times(self, tactic: Tactic) -> tuple[float | None, ...]:
        found = [self._race.of(tactic, bucket) for bucket in range(len(self._buckets))]
        extra = self._beside_microseconds if beside(tactic.form) else [0.0] * len(found)
        return tuple(each.median_us + more if each else None for each, more in zip(found, extra, strict=True))

    # ---- sixteen bits with FP32 ----

    def _add_mixed(self) -> None:
        """BF16 or FP16 with a few layers in FP32, where all in one type is fast and fails, or just passes."""
        tactic = mixing.candidate(self._race.at(_OPTIMUM), lambda each: self._verdicts.of(each, _OPTIMUM).passed)
        if tactic is None or not self._budget.left or well_inside(alone := self._verdicts.of(tactic)):
            return
        self._progress.stage("mix", tactic.name)
        self._mix = mixing.search(
            self._forms.plain, tactic, alone, lambda model: self._verdicts.tried(model, tactic),
            None if self._custom_ops else self._learned, budget_seconds=self._budget.share(budget.MIX),
        )  # fmt: skip
        if self._mix is not None and self._mix.model is not None:
            self._race_form(mixing.FORM, self._mix.model, self._mix.precision, budget.MIX)

    # ---- INT8 ----

    def _add_quantized(self) -> None:
        """The best eight-bit form by calibration, raced; and repaired where it is fast and fails the gate."""
        assert self._learned is not None
        base = OPTIMIZED + BESIDE if self._forms.reductions else OPTIMIZED
        self._progress.stage("calibrate", f"{len(self._learned)} samples")
        try:
            with tactics.compiled(
                Tactic("onnxruntime", "fp32", base), self._forms.files[base], limits=self._limits
            ) as child:
                recipe = self._picked(child.run)
        except InvalidArgument as error:  # nothing in the model can be quantized
            self._notes.append(str(error))
            return
        if self._on_gpu and "fp8" in self._allowed and multiplies_rows(self._forms.plain):
            self._race_steps(add_fp8(self._forms, STEPS_FP8, self._forms.optimized, recipe.ranges, self._buckets))
        if "int8" not in self._allowed:
            return
        if not self._on_gpu and out_of_reach(self._closest, self._options.gate):
            self._notes.append("INT8 loses too much for layers left in float to make up for it, so it was not timed")
            return
        form = self._race_eight_bits(recipe.name, recipe.model)
        tactic = worth_a_gate(form, self._race.at(_OPTIMUM), lambda wide: self._verdicts.failed(wide, _OPTIMUM))
        if tactic is None or self._verdicts.of(tactic).passed:
            return
        static = replace(tactic, shapes="static")
        if self._verdicts.of(static, _OPTIMUM).passed:
            return
        bucket = _OPTIMUM if self._verdicts.alone(static, _OPTIMUM) else None
        # With FP32 around INT8: what BF16 adds in noise is asked about afterwards, by the race and the gate.
        self._repair(recipe, replace(tactic, options=()), bucket)

    def _picked(self, reference: Run) -> Recipe:
        """The recipe closest to the float model on unseen samples; corrected where that brings it closer still."""
        assert self._data is not None
        assert self._learned is not None
        assert self._unseen is not None
        deadline = time.monotonic() + self._budget.share(budget.CALIBRATE)
        features = self._machine.features
        schemes = [quantize.suited(scheme, features) for scheme in quantize.SCHEMES.values()]
        recipe, cosines = picked(
            self._forms.plain, self._learned, self._unseen, [quantize.GPU] if self._on_gpu else schemes, reference,
            deadline, self._progress, None if self._on_gpu else self._options.gate,
        )  # fmt: skip
        self._closest = cosines[recipe.name]
        self._calibration = CalibrationRecord(self._data.digest, len(self._learned), tuple(cosines), recipe.method)
        self._notes.append(
            "least cosine on unseen samples: "
            + ", ".join(f"{name} {value:.4f}" for name, value in sorted(cosines.items(), key=lambda each: -each[1]))
        )
        return recipe

    def _worth_quantizing(self) -> bool:
        """On a GPU what is not in eight bits is in FP16, which has to pass by itself."""
        if not self._on_gpu or self._gpu.precision == "fp16":
            return True
        self._notes.append(f"the model needs {self._gpu.precision}, so nothing narrower than FP16 was tried")
        return False

    def _race_eight_bits(self, name: str, model: ir.Model) -> str:
        """A quantized graph on this device; the name of its form."""
        if not self._on_gpu:
            self._race_form(name, model, "int8", budget.INT8)
            return name
        self._race_steps(self._steps(f"{LOWERED}-{name}", model))
        return f"{LOWERED}-{name}"

    def _steps(self, name: str, model: ir.Model) -> Form:
        """A quantized graph as steps for the GPU, its reductions among them."""
        for text in self._options.reduce:
            model, _ = graph.boundary.reduce(model, text, beside=False)
        return add_int8(self._forms, name, model, self._buckets)

    def _add_trial(self, name: str, model: ir.Model) -> None:
        if self._on_gpu:
            self._steps(name, model)
        else:
            self._forms.add(name, model, precision="int8")

    def _race_steps(self, form: Form) -> None:
        self._tune(form, budget.INT8)
        self._race = self._raced({form.path.stem: form}, budget.INT8, self._race)

    def _race_form(self, name: str, model: ir.Model, precision: Literal["fp16", "bf16", "int8"], share: float) -> None:
        """Add a form, with the reductions in the graph and beside it, and time every tactic for it."""
        made: dict[str, Form] = {}
        if self._forms.reductions:
            made[name + BESIDE] = self._forms.add(name + BESIDE, model, precision=precision)
            for text in self._options.reduce:
                model, _ = graph.boundary.reduce(model, text, beside=False)
        made[name] = self._forms.add(name, model, precision=precision)
        self._race = self._raced(made, share, self._race)

    def _repair(self, recipe: Recipe, tactic: Tactic, bucket: int | None) -> None:
        """Leave as few layers in float as the gate asks for, of a bucket's static program or of all; and race that."""
        assert self._unseen is not None
        names = recipe.noisiest(self._unseen)
        self._progress.stage("sensitivity", f"{len(names)} layers")
        found = left_in_float(
            recipe, names, lambda model: self._verdicts.tried(model, tactic, self._add_trial, bucket=bucket),
            budget_seconds=self._budget.share(budget.REPAIR),
        )  # fmt: skip
        score = found.score if math.isfinite(found.score) else None
        form = self._race_eight_bits(f"{recipe.name}-mixed", recipe.keeping(found.layers).model) if found.passed else ""
        self._sensitivity = SensitivityRecord(tuple(sorted(found.layers)), len(names), score, found.evaluations, form)

    # ---- evidence ----

    def _evidence(self, selection: Selection, verdict: Verdict, draft: Draft) -> Evidence:
        timings, lost, skipped = evidence.of_race(self._race)
        metric = isinstance(self._options.gate, Metric)
        kind = "metric" if metric else "calibration data" if self._samples.real else "noise"
        samples = self._verdicts.samples
        return Evidence(
            buckets=self._buckets,
            chosen=selection.tactics,
            timings=timings,
            accuracy=evidence.of_verdict(self._options.gate, verdict, inputs=kind, samples=samples),
            environment=evidence.environment(self._machine),
            seconds=self._budget.spent,
            budget_seconds=self._budget.seconds,
            lost=lost,
            skipped=skipped,
            refused=self._verdicts.refused,
            alone=self._verdicts.judged_alone,
            passes=self._forms.passes,
            calibration=self._calibration,
            sensitivity=self._sensitivity,
            mixed=self._mix.record if self._mix is not None else None,
            ceilings=draft.ceilings,
            notes=(*self._forms.notes, *self._race.notes, *self._notes),
        )
