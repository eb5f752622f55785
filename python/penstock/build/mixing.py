"""BF16 or FP16 with a few layers in FP32: for models that sixteen bits alone bring a little outside the gate.

A form like any other: its marks say which layers stay wide (`quantize.wide`), it is raced in one precision by the one
library that can mix, and the gate has the last word. Only looked for where sixteen bits are fast and fail, or pass with
so little to spare that further inputs may fail. Where there is calibration data the weights of layers in BF16 are
rounded together first, which may be all that is needed. Called by the driver.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock import graph, quantize
from penstock.build.evidence import SensitivityRecord
from penstock.build.forms import BESIDE
from penstock.build.gate import Verdict
from penstock.build.judging import USED, margin, well_inside
from penstock.build.keeping import Layers, choose
from penstock.engine.plan import Tactic
from penstock.errors import PenstockError
from penstock.quantize import Calibration, Kept
from penstock.tactics import Measurement
from penstock.tactics.candidates import OPENVINO

_LOG = logging.getLogger(__name__)

FORM: Final = "mixed"
_NARROW: Final = frozenset({"bf16", "fp16"})
# What narrow types must win before some of it is given back.
_WORTH: Final = 1.1
# Beyond this share of the layers there is next to nothing left to win.
_MOST: Final = 0.75
# A mix that costs no more than this is taken in place of what passes without being well inside.
_SAFER: Final = 1.03

# The share of the layers that is tried first, and what tells which: times what a mix may lose.
_FEW: Final = 1 / 16
_MANY: Final = 1 / 2
_FAR: Final = 3.0

# Of the time, for weights that are rounded together; trials have the rest.
_ROUNDING: Final = 0.5

Times = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Mix:
    """What the search ended with."""

    record: SensitivityRecord
    model: ir.Model | None
    """The marked form; None where nothing passed."""

    precision: Literal["bf16", "fp16"]
    inside: bool
    """Well inside the gate, and not just inside."""


def candidate(timed: Sequence[Measurement], passes: Callable[[Tactic], bool]) -> Tactic | None:
    """The fastest tactic in sixteen bits of those timed, fastest first, where a part of its lead is worth having: over
    FP32, and over what passes in eight bits.
    """
    found = [each for each in timed if _is_narrow(each.tactic)]
    wide = [each for each in timed if each.tactic.precision == "fp32"]
    if not found or (wide and found[0].median_us * _WORTH > wide[0].median_us):
        return None
    eight = [each.tactic for each in timed if each.tactic.precision == "int8" and each.median_us <= found[0].median_us]
    return None if any(map(passes, eight)) else found[0].tactic


def search(
    model: ir.Model,
    tactic: Tactic,
    alone: Verdict,
    judged: Callable[[ir.Model], Verdict],
    learned: Calibration | None = None,
    *,
    budget_seconds: float,
) -> Mix | None:
    """Keep as few layers in FP32 as bring the model well inside the gate, or else inside; None where nothing can be
    done.

    model    the graph to mark: norms folded, without reductions.
    alone    the verdict without such layers.
    judged   the verdict on a graph, run as the tactic says.
    learned  what the weights of layers in BF16 are rounded together by.
    """
    precision: Literal["bf16", "fp16"] = "fp16" if tactic.precision == "fp16" else "bf16"
    began = time.monotonic()
    layers = quantize.convolutions(model)
    weights = _rounded(model, precision, learned, began + _ROUNDING * budget_seconds)
    if weights:
        alone = judged(quantize.keeping(model, (), weights))
    elif not layers:
        return None

    def look(evaluate: Callable[[Layers], float], passes: Callable[[float], bool]) -> Kept:
        if weights and passes(score := evaluate(frozenset())):
            return Kept(frozenset(), score, True, 1, True)
        left = began + budget_seconds - time.monotonic()
        ended = quantize.search_run(layers, evaluate, passes, budget_seconds=left, first_share=_first_share(alone))
        return replace(ended, evaluations=ended.evaluations + bool(weights))

    found, verdict = choose(
        look, lambda kept: judged(quantize.keeping(model, kept, weights)) if kept else alone, len,
        most=_MOST * len(layers),
    )  # fmt: skip
    names = tuple(_source(node) for node in model.graph if node.name in found.layers)
    score = found.score if math.isfinite(found.score) else None
    form = FORM if found.passed else ""
    record = SensitivityRecord(names, len(layers), score, found.evaluations, form, len(weights))
    mixed = quantize.keeping(model, found.layers, weights) if found.passed else None
    return Mix(record, mixed, precision, well_inside(verdict))


def _rounded(
    model: ir.Model, precision: str, learned: Calibration | None, deadline: float
) -> Mapping[str, NDArray[np.float32]]:
    """By layer; empty for FP16, without data, and where the library that says what layers read can't run the model."""
    if learned is None or precision != "bf16":
        return {}
    try:
        return quantize.in_bfloat16(model, learned, deadline=deadline)
    except PenstockError as error:
        _LOG.info("weights are not rounded together: %s", error)
        return {}


def _first_share(alone: Verdict) -> float:
    """Few layers take away half of what is lost; where it is several times what may be, it takes many."""
    over = (1 - alone.limit - margin(alone)) / (USED * (1 - alone.limit)) if alone.output and alone.limit < 1 else 0.0
    return _MANY if over > _FAR else _FEW


def _source(node: ir.Node) -> str:
    """The source model's name of a convolution that may have taken in others."""
    names = graph.sources(node)
    return names[0] if names else node.name or ""


def passed_over(tactic: Tactic, found: Mapping[Tactic, Verdict], times: Times, of_mixes: Sequence[Times]) -> Verdict:
    """The verdict on sixteen bits alone where a mix is well inside.

    What just passes is refused when the same arithmetic on another form of the model fails, since then it was luck; and
    when the mix is as fast at every bucket.

    found     the verdicts so far, this tactic's among them.
    times     of the tactic, by bucket; None where it was not timed.
    of_mixes  of the tactics of the mixed form.
    """
    verdict = found[tactic]
    if not verdict.passed or not _is_narrow(tactic) or well_inside(verdict):
        return verdict
    failed = [each for each, other in found.items() if _is_narrow(each) and not other.passed]
    best = [min((mix[at] or math.inf for mix in of_mixes), default=math.inf) for at in range(len(times))]
    if failed:
        why = f"{failed[0].name}, which computes alike, fails"
    elif all(own is None or mixed <= _SAFER * own for own, mixed in zip(times, best, strict=True)):
        why = f"{FORM} is as fast and further inside"
    else:
        return verdict
    return replace(verdict, passed=False, message=f"just passes ({verdict.message}), and {why}")


def with_mix(finalists: Sequence[Tactic], timed: Sequence[Measurement]) -> list[Tactic]:
    """The finalists with the faster mix among them, in the last one's place: what is known to be nearly as fast as
    sixteen bits is not lost by one bad moment of the machine.
    """
    mix = next((each.tactic for each in timed if is_mix(each.tactic)), None)
    if mix is None or not finalists or any(map(is_mix, finalists)):
        return list(finalists)
    return [*(finalists[:-1] or finalists), mix]


def _is_narrow(tactic: Tactic) -> bool:
    return tactic.runtime == OPENVINO and tactic.precision in _NARROW and not is_mix(tactic)


def is_mix(tactic: Tactic) -> bool:
    """Whether it runs the mixed form."""
    return tactic.form in (FORM, FORM + BESIDE)
