"""The reference that every candidate is compared with, and reductions as the engine will compute them.

The reference is ONNX Runtime in FP32 on the source with every graph optimisation off: what the file says, literally.
Called by the driver.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock import tactics
from penstock.build.gate import Cosine, Gate, Judge, Verdict
from penstock.build.samples import Samples
from penstock.engine import Engine
from penstock.engine.plan import SOURCE, Profile, Reduction, Shapes, Tactic
from penstock.engine.reducing import reduced
from penstock.errors import AccuracyError, InvalidArgument
from penstock.tactics import Form
from penstock.tensors import TensorSpec

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], Mapping[str, Array]]

# Inputs that outputs are compared on when the user gave none.
_NOISE_SAMPLES: Final = 4
_HELD_OUT_SAMPLES: Final = 32
_REDUCTION_CALLS: Final = 5
# What the reference's answers to further inputs may take.
_MORE_BYTES: Final = 256 * 2**20
# Of what a cosine gate allows, what may be used by the best of several that the same inputs chose and judge.
USED: Final = 0.7
# Kernels that round differently differ by less.
_MUCH_NEARER: Final = 0.5
# Times what is allowed: mistakes of a library are no smaller. Seen: 4 in a small network, 110 and 260 in others.
_GROSS: Final = 3.0
# Too few for a bound on further inputs: only what is seen to fail fails.
_FIRST: Final = 7

REFERENCE: Final = Tactic("onnxruntime", "fp32", SOURCE, options=(("graph_optimization_level", "disabled"),))


def settled(samples: Samples, form: Form, shapes: Sequence[Shapes], limits: tactics.Limits) -> list[str]:
    """Let the reference choose what noise is made of, see `Samples.settle`; what there is to note of it.

    A process that failed is gone, and the next try has one of its own.
    """
    children: list[tactics.Child] = []
    with ExitStack() as stack:

        def run(inputs: Arrays) -> Arrays:
            if not children or children[-1].closed:
                children.append(stack.enter_context(tactics.compiled(REFERENCE, form, limits=limits)))
            return children[-1].run(inputs)

        assumed = samples.settle(run, shapes)
    return (
        [f"the model answers noise only where {assumed}: give --calibration with inputs of its own"] if assumed else []
    )


def calling(engine: Engine) -> Run:
    """An engine as gates want it."""
    return lambda inputs: engine(**inputs)


def reducing(run: Run, reductions: Iterable[Reduction]) -> Run:
    """`run` followed by what the engine computes beside the library call."""
    steps = tuple(reductions)
    return (lambda inputs: reduced(run(inputs), steps)) if steps else run


def reduction_microseconds(outputs: Arrays, reductions: Iterable[Reduction]) -> float:
    """What computing them beside the library call takes."""
    steps = tuple(reductions)
    samples: list[float] = []
    for _ in range(_REDUCTION_CALLS):
        start = time.perf_counter()
        reduced(outputs, steps)
        samples.append(time.perf_counter() - start)
    return 1e6 * statistics.median(samples)


def within(profiles: Iterable[Profile], run: Run) -> Run:
    """`run` for inputs that an engine of these profiles takes; raises InvalidArgument for others.

    Any number of rows is taken: an engine pads and splits batches.
    """
    known = tuple(profiles)

    def checked(inputs: Arrays) -> Mapping[str, Array]:
        shapes = {name: array.shape for name, array in inputs.items()}
        if not any(each.contains(shapes) or each.contains(_of_most_rows(each, shapes)) for each in known):
            limits = " or ".join(f"{_text(each.minimum)} to {_text(each.maximum)}" for each in known)
            raise InvalidArgument(f"the metric asks for {_text(shapes)}, outside {limits}; widen --shapes")
        return run(inputs)

    return checked


def _of_most_rows(profile: Profile, shapes: Shapes) -> Shapes:
    return {
        name: (*profile.maximum[name][:1], *shape[1:]) if name in profile.maximum else shape
        for name, shape in shapes.items()
    }


def _text(shapes: Shapes) -> str:
    return ";".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


@dataclass(frozen=True, slots=True)
class Compared:
    """The inputs that candidates are compared on."""

    unseen: Sequence[Arrays]
    """By calibration."""

    learned: Sequence[Arrays] = ()
    """Some that it has seen."""

    more: Sequence[Arrays] = ()
    """Others that it has seen, as far as `more_seconds` of the reference go: rare inputs are among many."""

    more_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Judges:
    """Who judges what. Of what was made from calibration's samples they say less than of the rest, but what fails
    on them fails: it is never better on others.
    """

    learned: Judge
    """Of forms that calibration data went into: by inputs that calibration has not seen, and then by those it has."""

    plain: Judge
    """Of all others."""

    first: Judge | None
    """On a few of the inputs of `learned`, for trials: what fails there fails. None where there are few anyway."""

    look: Judge | None
    """On few of them, for what was judged in another way already. None for metrics, which bring inputs of their own."""

    inputs: tuple[Arrays, ...]
    """What both compare outputs on, in the order in which the first does."""


def to_compare(
    samples: Samples,
    buckets: Sequence[Shapes],
    learned: Iterable[Arrays],
    more_seconds: float,
    fitted: Callable[[Arrays], Arrays] | None = None,
) -> Compared:
    """What a build has: unseen inputs, and so many of those that calibration has seen as make up for their number.

    more_seconds  of the reference, for the rest of them.
    fitted        brings an input to what programs take; None: they take it as it is.
    """
    count = _HELD_OUT_SAMPLES if samples.real else _NOISE_SAMPLES
    # A second input for the same bucket is for the last ones, which are small as a rule: the reference is slow.
    unseen: list[Arrays] = list(samples.held_out([*buckets, *reversed(buckets)], count))
    seen: list[Arrays] = [dict(each) for each in learned]
    some = max(0, count - len(unseen))
    chosen, more = seen[:some], seen[some:] if more_seconds > 0 else []
    if fitted is not None:
        unseen, chosen, more = ([fitted(each) for each in part] for part in (unseen, chosen, more))
    return Compared(unseen, chosen, more, more_seconds)


def judges(gate: Gate, reference: Run, inputs: Compared, specs: Sequence[TensorSpec]) -> Judges:
    """Run the reference, once on each input."""
    unseen, learned = inputs.unseen, inputs.learned
    if not isinstance(gate, Cosine):
        only = gate.against(reference, unseen, specs)
        return Judges(only, only, None, None, tuple(unseen))
    recalled = _once(reference)
    for sample in unseen:
        _check_numbers(recalled(sample))
    strange = gate.against(recalled, unseen, specs)
    familiar = [*learned, *_affordable(recalled, inputs.more, inputs.more_seconds)]
    every = [*unseen, *familiar]
    first = gate.against(recalled, unseen[:_FIRST], specs) if len(every) > 2 * _FIRST else None
    both = _worse(strange, gate.against(recalled, familiar, specs)) if familiar else strange
    plain = gate.against(recalled, every, specs)
    return Judges(both, plain, first, first or plain, tuple(every))


def _check_numbers(answers: Mapping[str, Array]) -> None:
    """Raises AccuracyError where the reference answers NaN: candidates are not to blame."""
    for name, array in answers.items():
        if array.dtype.kind == "f" and (count := int(np.isnan(array).sum())):
            raise AccuracyError(
                f"the model itself, in FP32, answers NaN in {count} of {array.size} values of output {name!r}, so that "
                "nothing can be compared with it; give --calibration with inputs that it answers with numbers"
            )


def _affordable(run: Run, samples: Iterable[Arrays], seconds: float) -> Iterator[Arrays]:
    """As many as there is time and room for."""
    began, size = time.monotonic(), 0
    for sample in samples:
        if time.monotonic() - began >= seconds or size > _MORE_BYTES:
            return
        size += sum(array.nbytes for array in run(sample).values())
        yield sample


def _worse(first: Judge, second: Judge) -> Judge:
    """The worse of two verdicts; the second is asked where the first one passes."""

    def judged(run: Run) -> Verdict:
        verdict = first(run)
        return min(verdict, second(run), key=margin) if verdict.passed else verdict

    return judged


def in_steps(
    first: Judge | None, judge: Judge, run: Run, worth: Callable[[Verdict], bool] = lambda _: True
) -> tuple[Verdict, Verdict]:
    """The verdict on the first few inputs, and on all: the same where it fails, or is not worth asking for more."""
    if first is None:
        verdict = judge(run)
        return verdict, verdict
    once = _once(run, _FIRST)
    verdict = first(once)
    if not verdict.passed or not worth(verdict):
        return verdict, verdict
    # Of the same inputs whether it failed or not, so that candidates can be compared.
    return verdict, replace(judge(once), usual=verdict.usual)


def _once(run: Run, most: float = math.inf) -> Run:
    """`run`, which computes the same arrays once, the first `most` of them; those who call it keep them."""
    known: dict[int, Mapping[str, Array]] = {}

    def recalled(sample: Arrays) -> Mapping[str, Array]:
        if id(sample) in known:
            return known[id(sample)]
        answer = run(sample)
        if len(known) < most:
            known[id(sample)] = answer
        return answer

    return recalled


def margin(verdict: Verdict) -> float:
    """How far inside the gate a verdict is, in the gate's own unit: 0 and more has passed, below 0 it has not.

    Unlike the verdict it is comparable: of two that fail the nearer one is the larger.
    """
    if math.isnan(verdict.measured) or math.isnan(verdict.limit):
        return -math.inf
    if verdict.output:  # a cosine or an agreement: more is better
        likely = verdict.measured if verdict.expected is None else min(verdict.measured, verdict.expected)
        distance = likely - verdict.limit
    else:
        distance = verdict.limit - (verdict.interval[1] if verdict.interval else verdict.measured)
    return max(0.0, distance) if verdict.passed else min(distance, -math.ulp(1.0))


def much_nearer(verdict: Verdict, other: Verdict) -> bool:
    """Whether, on the same inputs, it loses so much less that it can't have computed the same."""
    lost, more = _lost(verdict), _lost(other)
    return math.isfinite(lost) and (not math.isfinite(more) or lost < _MUCH_NEARER * more)


def grossly_wrong(verdict: Verdict) -> bool:
    """Whether it fails by so much that the library may be at fault, and not the type."""
    allowed = 1 - verdict.limit if verdict.output else verdict.limit
    return not verdict.passed and not _lost(verdict) <= _GROSS * allowed


def _lost(verdict: Verdict) -> float:
    if math.isnan(verdict.measured):
        return math.inf
    return 1 - verdict.measured if verdict.output else max(0.0, verdict.measured)


def well_inside(verdict: Verdict) -> bool:
    """Whether a part of what is allowed is left; scores of metrics have bounds of their own."""
    if not verdict.passed or not verdict.output:
        return verdict.passed
    return margin(verdict) >= (1 - USED) * (1 - verdict.limit)
