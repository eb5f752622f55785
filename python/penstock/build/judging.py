"""The reference that every candidate is compared with, and reductions as the engine will compute them.

The reference is ONNX Runtime in FP32 on the source with every graph optimisation off: what the file says, literally.
Called by the driver.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from numpy.typing import NDArray

from penstock.build.gate import Verdict
from penstock.engine.plan import SOURCE, Reduction, Tactic
from penstock.engine.reducing import reduced

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], Mapping[str, Array]]

REFERENCE: Final = Tactic("onnxruntime", "fp32", SOURCE, options=(("graph_optimization_level", "disabled"),))


def reducing(run: Run, reductions: Iterable[Reduction]) -> Run:
    """`run` followed by what the engine computes beside the library call."""
    steps = tuple(reductions)
    return (lambda inputs: reduced(run(inputs), steps)) if steps else run


def margin(verdict: Verdict) -> float:
    """How far inside the gate a verdict is, in the gate's own unit: 0 and more has passed, below 0 it has not.

    Unlike the verdict it is comparable: of two that fail the nearer one is the larger.
    """
    if math.isnan(verdict.measured) or math.isnan(verdict.limit):
        return -math.inf
    if verdict.output:  # a cosine or an agreement: more is better
        distance = verdict.measured - verdict.limit
    else:
        distance = verdict.limit - (verdict.interval[1] if verdict.interval else verdict.measured)
    return max(0.0, distance) if verdict.passed else min(distance, -math.ulp(1.0))
