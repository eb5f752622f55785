"""The accuracy gate: whether a candidate's answers are close enough to the FP32 reference's for an engine to be sealed.

A `Gate` is bound to the reference once (`against`), which gives a `Judge` for any number of candidates. `Cosine`
compares outputs on samples; `Metric` compares what a user's own function makes of both models. Outputs that differ, in
whatever way, are a verdict and not an exception, whose message says which output, how far off and what to do; what a
run itself raises goes through. NaN never passes. `parse` reads the command line's form. Called by the driver and
`penstock compare`; users meet it as `ps.Cosine` and `ps.Metric`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.build.metrics import OutputError, compare_outputs, worst
from penstock.build.paired import drop_of, further_cosine
from penstock.engine.importing import find
from penstock.errors import InvalidArgument, PenstockError
from penstock.tensors import TensorSpec

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], Mapping[str, Array]]
"""A model as a function of named arrays."""

_FORMS: Final = "expected 'cosine>=0.999' or 'module:metric drop<=0.01'"
_ADVICE: Final = "allow a wider --precision, give more --calibration data, or loosen --accuracy"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate found, of one candidate."""

    passed: bool

    measured: float
    """The least cosine (or agreement) of any output; or the mean drop of the score. NaN when it can't be told."""

    limit: float
    """What `measured` had to reach (cosine), or what the drop's upper bound must not pass."""

    interval: tuple[float, float] | None = None
    """Lower and upper bound of the drop, 95 % each; None for cosines and for scores without samples."""

    expected: float | None = None
    """The cosine that 99 in 100 further inputs are expected to reach; None where it can't be told, and for metrics."""

    usual: float | None = None
    """The mean over inputs of what is lost, 1 less the cosine: of few inputs it says more than the least which of two
    candidates is nearer. None for metrics, and where it can't be told."""

    output: str = ""
    """The output that decided; empty for metrics."""

    message: str = ""
    """One sentence for people."""

    errors: tuple[OutputError, ...] = ()
    """Every output, worst over the samples; empty for metrics."""


Judge = Callable[[Run], Verdict]


class Gate(Protocol):
    """How accuracy is judged."""

    @property
    def text(self) -> str:
        """As `--accuracy` takes it, for evidence."""
        ...

    def against(self, reference: Run, samples: Sequence[Arrays], specs: Sequence[TensorSpec] = ()) -> Judge:
        """Runs the reference now, once, and returns what judges candidates by it.

        samples  inputs to compare outputs on; a metric has data of its own and ignores them.
        specs    signature of the outputs, which tells BF16 from integers.
        """
        ...


@dataclass(frozen=True, slots=True)
class Cosine:
    """Every floating-point output of every sample has a cosine of at least `minimum` with the reference's.

    A sample is a row of a batch. From eight inputs on, further inputs must be expected to pass, too: the least cosine
    of a few is a lucky one (`paired.further_cosine`). Integer, boolean and byte outputs (the ids of an argmax) have no
    angle: `minimum` is then the least share of equal values over all samples. A cosine does not see the scale of an
    output: its relative error does, which is in `errors`, reported and not judged.
    """

    minimum: float = 0.999

    def __post_init__(self) -> None:
        if not -1 <= self.minimum <= 1:
            raise InvalidArgument(f"cosine limit {self.minimum}: expected a number from -1 to 1, as in cosine>=0.999")

    @property
    def text(self) -> str:
        return f"cosine>={self.minimum:.12g}"

    def against(self, reference: Run, samples: Sequence[Arrays], specs: Sequence[TensorSpec] = ()) -> Judge:
        """The reference's outputs are held as long as the judge is."""
        if not samples:
            raise InvalidArgument("the cosine gate got no samples; give it at least one input to compare outputs on")
        answers = [dict(reference(sample)) for sample in samples]

        def judge(candidate: Run) -> Verdict:
            pairs = zip(answers, samples, strict=True)
            return self.verdict([compare_outputs(answer, candidate(sample), specs) for answer, sample in pairs])

        return judge

    def verdict(self, samples: Sequence[Sequence[OutputError]]) -> Verdict:
        """Of outputs that were compared already: a list for each input."""
        errors = worst(samples)
        if not errors:
            return Verdict(False, math.nan, self.minimum, message="there are no outputs to compare")
        decisive = min(errors, key=lambda each: (not each.fault, _likeness(each)))
        measured = math.nan if decisive.fault else _likeness(decisive)
        further = {} if decisive.fault else _further(samples)
        # NaN is neither above nor below: only what is seen to reach the limit passes.
        reached = not decisive.fault and measured >= self.minimum
        doubtful = min(further, key=further.__getitem__) if further else ""
        passed = reached and (not further or further[doubtful] >= self.minimum)
        what = "cosine" if decisive.numeric else "agreement"
        if decisive.fault:
            message = f"output {decisive.output!r}: {decisive.fault}; {_ADVICE.partition(',')[0]}"
        elif passed:
            message = (
                f"{what} {_digits(measured)} >= {self.minimum:.12g} over {len(samples)} inputs, "
                f"least in {decisive.output!r}"
            )
        elif reached:
            message = (
                f"output {doubtful!r}: cosine {_digits(measured)} over {len(samples)} inputs, but 1 in 100 further "
                f"ones is expected below {_digits(further[doubtful])}; expected at least {self.minimum:.12g}; {_ADVICE}"
            )
        else:
            limit = f"expected at least {self.minimum:.12g}"
            message = f"output {decisive.output!r}: {what} {_digits(measured)}, {limit}; {_ADVICE}"
        return Verdict(
            passed, measured, self.minimum, None, further.get(doubtful), _usual(samples), decisive.output, message,
            tuple(errors),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of the user's own may drop by at most `drop`.

    `function(run)` gets a callable {name: array} -> {name: array}, uses its own held-out data, and returns one score
    per sample (1-D, higher is better, the same samples in the same order each time) or one number. Of scores per sample
    the 95 % upper bound of the mean paired drop must stay within `drop` (see paired.py); one number has no interval,
    and the drop itself is judged.
    """

    function: Callable[[Run], Any]
    drop: float
    name: str = ""
    """For evidence and messages: `module:metric`; the function's own name where it is empty."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.drop):
            raise InvalidArgument(f"drop limit {self.drop}: expected a finite number, as in 'module:metric drop<=0.01'")

    @property
    def title(self) -> str:
        return self.name or str(getattr(self.function, "__name__", "metric"))

    @property
    def text(self) -> str:
        return f"{self.title} drop<={self.drop:.12g}"

    def against(self, reference: Run, samples: Sequence[Arrays], specs: Sequence[TensorSpec] = ()) -> Judge:
        base = self._scores(reference)
        if not np.isfinite(base).all():
            raise InvalidArgument(f"metric {self.title}: the reference scores NaN or infinity; check the metric's data")
        return lambda candidate: self._judge(base, self._scores(candidate))

    def _scores(self, run: Run) -> NDArray[np.float64]:
        try:
            found = np.asarray(self.function(run), np.float64)
        except PenstockError:
            raise
        except Exception as error:  # a user's function may raise anything, and has to be told apart from ours
            said = " ".join(str(error).split())
            raise InvalidArgument(f"metric {self.title} raised {type(error).__name__}: {said}") from error
        if found.ndim > 1 or found.size == 0:
            raise InvalidArgument(
                f"metric {self.title}: expected a number or scores of shape [samples], got shape {list(found.shape)}"
            )
        return found

    def _judge(self, base: NDArray[np.float64], scores: NDArray[np.float64]) -> Verdict:
        if scores.shape != base.shape:
            raise InvalidArgument(
                f"metric {self.title}: {scores.size} scores for the candidate and {base.size} for the reference; "
                "expected the same samples each time"
            )
        if not np.isfinite(scores).all():
            return Verdict(
                False,
                math.nan,
                self.drop,
                message=f"metric {self.title}: the candidate scores NaN or infinity; {_ADVICE}",
            )
        if base.ndim == 0 or base.size == 1:
            drop = float((base - scores).reshape(()))
            return self._verdict(drop, drop, None, f"drop {_digits(drop)}, one score without an interval")
        found = drop_of(base, scores)
        words = f"drop {_digits(found.mean)}, 95 % upper bound {_digits(found.upper)} over {base.size} samples"
        return self._verdict(found.mean, found.upper, (found.lower, found.upper), words)

    def _verdict(self, drop: float, bound: float, interval: tuple[float, float] | None, words: str) -> Verdict:
        # Scores are often shares of a few samples, whose sums end in a digit of rounding.
        passed = bound <= self.drop or math.isclose(bound, self.drop, rel_tol=1e-12, abs_tol=1e-15)
        message = f"metric {self.title}: {words}, " + (
            f"within {self.drop:.12g}" if passed else f"expected at most {self.drop:.12g}"
        )
        if not passed:
            wide = interval is not None and drop <= self.drop
            message += "; " + ("give the metric more samples, or " + _ADVICE if wide else _ADVICE)
        return Verdict(passed, drop, self.drop, interval, message=message)


def _usual(samples: Sequence[Sequence[OutputError]]) -> float | None:
    """Of each sample the worst output."""
    losses = [[1 - each.cosine for each in errors if each.cosine is not None] for errors in samples]
    if not all(losses) or any(each.fault for errors in samples for each in errors):
        return None
    return sum(map(max, losses)) / len(losses)


def _further(samples: Sequence[Sequence[OutputError]]) -> dict[str, float]:
    """By output: the cosine that further inputs are expected to reach. Only of outputs that can be told of."""
    cosines: dict[str, list[float]] = {}
    for errors in samples:
        for each in errors:
            if each.cosine is not None:
                cosines.setdefault(each.output, []).append(each.cosine)
    bounds = ((name, further_cosine(found)) for name, found in cosines.items())
    return {name: bound for name, bound in bounds if bound is not None}


def _likeness(error: OutputError) -> float:
    likeness = error.cosine if error.numeric else error.agreement
    return -math.inf if likeness is None or math.isnan(likeness) else likeness


def _digits(value: float) -> str:
    """Enough to tell 0.99995 from 1, and never up to what was not reached."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.6f}".rstrip("0").rstrip(".") if abs(1 - value) > 1e-5 else f"{value:.12g}"


def parse(text: str) -> Gate:
    """`cosine>=0.999` or `module:metric drop<=0.01`; the working directory is on the path. Raises InvalidArgument."""
    if found := re.fullmatch(r"\s*cosine\s*>=\s*(\S+)\s*", text):
        return Cosine(_number(found[1], text))
    if found := re.fullmatch(r"\s*([\w.]+:[\w.]+)\s+drop\s*<=\s*(\S+)\s*", text):
        return Metric(named(found[1]), _number(found[2], text), found[1])
    raise InvalidArgument(f"accuracy {text!r} can't be read, {_FORMS}")


def _number(digits: str, text: str) -> float:
    try:
        return float(digits)
    except ValueError:
        raise InvalidArgument(f"accuracy {text!r}: {digits!r} is no number, {_FORMS}") from None


def named(text: str) -> Callable[..., Any]:
    """The function that `module:name` names, with the working directory first on the path, as `python -m` has it.

    Raises InvalidArgument where there is none, or where importing it fails. The code is the user's own, and runs.
    """
    found = find(text)
    if not callable(found):
        raise InvalidArgument(f"{text}: expected a function, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]
