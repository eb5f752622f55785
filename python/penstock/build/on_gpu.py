"""What is different where an engine is built for a GPU: one precision at a time, tuning, and shapes that are prepared.

All processes of a build stay in one stable: those that were timed are asked by the gate, and export what is sealed. The
driver asks what to race next and how long, and which inputs a program for the GPU takes.
"""

import importlib
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
from numpy.typing import NDArray

from penstock.build.gate import Verdict
from penstock.build.judging import REFERENCE, Run
from penstock.build.samples import fitted
from penstock.engine.cuda import choices as chosen
from penstock.engine.cuda import costs, tuning
from penstock.engine.cuda import form as forms
from penstock.engine.cuda.tuning import Tuning
from penstock.engine.narrowing import narrowed
from penstock.engine.plan import CUDA, LOWERED, PLAIN_STEPS, TUNED_STEPS, Shapes, Tactic
from penstock.engine.routing import beyond_rows
from penstock.engine.runtimes import providers
from penstock.errors import InvalidArgument
from penstock.tactics import (
    GPU_PRECISIONS,
    GPU_TUNED,
    Child,
    Chosen,
    Form,
    Limits,
    Measurement,
    Race,
    Stable,
    TimingCache,
    compiled,
    for_gpu,
)

Arrays = Mapping[str, NDArray[Any]]

STEPS_FP8: Final = f"{LOWERED}-fp8"
"""The form whose layers are in e4m3."""

# Of one bucket: more finds nothing, and a candidate's compilation has a limit.
_MOST_TUNING_SECONDS: Final = 90.0
# What comes after the race: the gate, confirming, exporting, writing, loading and judging: 7 s of a ResNet-50 with
# three buckets on an H200, of which writing takes two.
_CLOSING_SECONDS: Final = 4.5
_CLOSING_SECONDS_OF_BUCKET: Final = 0.6
_CLOSING_SECONDS_OF_GIGABYTE: Final = 15.0
_MOST_OF_BUDGET: Final = 0.6
# A GPU's times are steady: what is farther behind than this in turns with the best needs no second look.
_FINALIST_RATIO: Final = 1.1
_CONFIRM_SECONDS: Final = 1.5  # of a bucket


class OnGpu:
    """One build's."""

    finalist_ratio = _FINALIST_RATIO
    confirm_seconds = _CONFIRM_SECONDS

    def __init__(self, buckets: Sequence[Shapes], batched: bool, allowed: Collection[str], contexts: int = 1) -> None:
        """`buckets`: the optimum first; `batched`: rows can be told apart, so that a bucket may be padded; `contexts`:
        as `BuildOptions` has it.
        """
        self._contexts = contexts
        self._buckets, self._batched = [dict(each) for each in buckets], batched
        self._allowed = frozenset(allowed)
        self.precisions = [each for each in GPU_PRECISIONS if each in allowed]
        self.precision = self.precisions[0]
        """The one that is raced now."""
        self.narrows = False
        """Whether other forms are raced after the first."""
        self._closing = 0.0

    @staticmethod
    def first(allowed: Collection[str], limits: Limits, folder: Path) -> list[Child]:
        """The processes of what will be asked first, which begin to import while there is nothing to compile yet; the
        form will lie in the folder.
        """
        precision = next(each for each in GPU_PRECISIONS if each in allowed)
        plain, tuned = (Tactic(CUDA, precision, LOWERED, "static", options=each) for each in (PLAIN_STEPS, TUNED_STEPS))
        path = folder / f"{LOWERED}.safetensors"
        return [Child(plain, limits), *([Child(tuned, limits, path)] if precision in GPU_TUNED else [])]

    def start(
        self, files: Mapping[str, Form], inputs: Callable[[Shapes], Arrays], limits: Limits, first: Sequence[Child]
    ) -> Stable:
        """The processes of this build."""
        self._stable = found = Stable(files, self._buckets, inputs, limits)
        for each in first:
            found.take(each)
        return found

    def plain(self, wanted: Sequence[Tactic]) -> list[Tactic]:
        """Those that are there within seconds; the processes of all others start now, too."""
        for each in wanted:
            self._stable.expect(each)
        return [each for each in wanted if each.options == PLAIN_STEPS]

    def tactics(self, forms: Mapping[str, Form], *, free_shapes: bool) -> list[Tactic]:
        """What is raced for these forms in the precision of now."""
        return for_gpu(forms, self._allowed, self.precision, free_shapes=free_shapes, providers=providers())

    def tune_for(self, form: Form, budget: float, left: float, share: float, cache: TimingCache | None) -> list[str]:
        """Say how long buckets are tuned, in this share of the race's time, and hand over what earlier builds chose;
        notes about that.
        """
        gigabytes = form.path.stat().st_size / 1e9
        closing = _CLOSING_SECONDS + len(self._buckets) * _CLOSING_SECONDS_OF_BUCKET
        self._closing = min(closing + gigabytes * _CLOSING_SECONDS_OF_GIGABYTE, _MOST_OF_BUDGET * budget)
        known = self._recalled(form, cache) if cache is not None else {}
        until = time.monotonic() + self.race_seconds(left, share)
        Tuning.prepare(form.path, _MOST_TUNING_SECONDS, until=until, known=known, contexts=self._contexts)
        widths = {json.loads(name)[1] for name in known}
        if not known:
            return []
        return [f"choices of {len(known)} of {len(self._buckets) * len(widths)} buckets came from the timing cache"]

    def check_workspace(self, form: Form, limit: int) -> None:
        """Raises InvalidArgument where weights and values alone are more, before anything is tuned for minutes."""
        found = forms.read(form.path.read_bytes(), form.path.name)
        datatype = "FP32" if self.precision in ("tf32", "fp32") else "FP16"
        floats = costs.SIZES[datatype]
        sizes = ((each.size, each.dtype) for each in found.weights.values())
        weights = sum(size * (floats if dtype.kind == "f" else dtype.itemsize) for size, dtype in sizes)
        contexts = [costs.arena(narrowed(each.graph, datatype)) for each in found.prepared]
        if weights + sum(contexts) > limit:
            raise InvalidArgument(
                f"the GPU's programs take {weights + sum(contexts)} bytes at least (weights {weights}, buckets "
                f"{', '.join(map(str, contexts))}), --workspace allows {limit}; allow more, or leave out a bucket"
            )

    def race_seconds(self, left: float, share: float) -> float:
        """Of what is left, without what comes after; a share of it where eight bits are to be raced, too."""
        return (share if self.narrows else 1.0) * max(0.0, left - self._closing)

    def _recalled(self, form: Form, cache: TimingCache) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, key in self._keys(form, cache).items():
            entry = cache.get(key)
            if isinstance(entry, Chosen):
                found[name] = json.loads(chosen.to_json(entry.choices))
        return found

    def remember(self, form: Form, cache: TimingCache) -> None:
        """Put what was tuned into the cache, and save it."""
        known = Tuning(form.path).known
        for name, key in self._keys(form, cache).items():
            if name in known:
                cache.put(key, Chosen(chosen.from_json(json.dumps(known[name]))))
        cache.save()

    def _keys(self, form: Form, cache: TimingCache) -> dict[str, str]:
        """Name of what is chosen once -> its name in the cache."""
        prepared = forms.read(form.path.read_bytes(), form.path.name).prepared
        digests = [(each.shapes, tuning.digest(each, self._contexts)) for each in prepared]
        return {
            name: cache.key_of_choices(digest, name.rpartition(",")[2])
            for shapes, digest in digests
            for name in dict.fromkeys(tuning.name(shapes, precision) for precision in self.precisions)
        }

    @contextmanager
    def running(self, tactic: Tactic, limits: Limits, source: Form) -> Iterator[Run]:
        """A tactic at whatever shapes, in the process that raced it. What no bucket takes runs on the CPU, in the
        engine as here.
        """
        child = self._stable.whole(replace(tactic, shapes="static"), limits.start_seconds + limits.compile_seconds)
        rest: list[Child] = []
        with ExitStack() as stack:

            def run(inputs: Arrays) -> Mapping[str, NDArray[Any]]:
                if self.takes(inputs):
                    return child.run(inputs)
                if not rest:
                    rest.append(stack.enter_context(compiled(REFERENCE, source, limits=limits)))
                return rest[0].run(inputs)

            yield run

    def fastest(self, timed: Sequence[Measurement]) -> Tactic | None:
        """Of those on the GPU in the precision of now; `timed` has the fastest first."""
        own = (each.tactic for each in timed if each.tactic.runtime == CUDA)
        return next((tactic for tactic in own if tactic.precision == self.precision), None)

    def takes(self, inputs: Arrays) -> bool:
        """Whether a bucket has these shapes, or others by rows alone where it may be padded."""
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes in self._buckets:
            return True
        return self._batched and any(beyond_rows(bucket) == beyond_rows(shapes) for bucket in self._buckets)

    def as_prepared(self, inputs: Arrays) -> Arrays:
        """A sample that some bucket takes: brought to the optimum's shapes where none does."""
        return inputs if self.takes(inputs) else fitted(inputs, self._buckets[0])


def import_ahead() -> None:
    """Import what loading the engine will need, on a thread: seconds in which this process only waits for others."""
    threading.Thread(target=_import, name="penstock-import", daemon=True).start()


def _import() -> None:
    with suppress(Exception):  # whoever loads the engine is told
        _prepare()


def _prepare() -> None:
    runtime = importlib.import_module("penstock.engine.cuda.runtime")
    runtime.CudaRuntime.prepare(Tactic(CUDA, "fp32", LOWERED, options=PLAIN_STEPS), None)


def multiplies_rows(model: ir.Model) -> bool:
    """Whether more layers are matrix products than convolutions: those gain from e4m3, which keeps their outliers."""
    products = sum(node.op_type in ("MatMul", "Gemm") and _is_layer(node) for node in model.graph)
    return products > sum(node.op_type == "Conv" for node in model.graph)


def _is_layer(node: ir.Node) -> bool:
    weight = node.inputs[1]
    return weight is not None and weight.is_initializer()


def why_not(race: Race, verdicts: Mapping[Tactic, Verdict]) -> str:
    """What became of the programs for the GPU, in one line."""
    lost = [f"{each.tactic.name} {each.reason}" for each in race.lost if each.tactic.runtime == CUDA]
    refused = [f"{tactic.name}: {each.message}" for tactic, each in verdicts.items() if not each.passed]
    return "; ".join(dict.fromkeys([*lost, *refused])) or "there was no time for any"
