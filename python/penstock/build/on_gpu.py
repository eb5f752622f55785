"""What is different where an engine is built for a GPU: one precision at a time, tuning, and shapes that are prepared.

Called by the driver, which asks it what to race next, and which inputs a program for the GPU takes.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir
from numpy.typing import NDArray

from penstock.build.gate import Verdict
from penstock.build.samples import fitted
from penstock.engine.cuda.tuning import Tuning
from penstock.engine.plan import CUDA, LOWERED, Shapes, Tactic
from penstock.engine.routing import beyond_rows
from penstock.tactics import GPU_PRECISIONS, Form, Measurement, Race

Arrays = Mapping[str, NDArray[Any]]

STEPS_FP8: Final = f"{LOWERED}-fp8"
"""The form whose layers are in e4m3."""

_TUNE_SHARE: Final = 0.35  # of the time that is left
# Of one bucket: less finds little, more finds nothing, and a candidate's compilation has a limit.
_LEAST_TUNING_SECONDS: Final = 4.0
_MOST_TUNING_SECONDS: Final = 90.0


class OnGpu:
    """One build's."""

    def __init__(self, buckets: Sequence[Shapes], batched: bool, allowed: Collection[str]) -> None:
        """`buckets`: the optimum first; `batched`: rows can be told apart, so that a bucket may be padded."""
        self._buckets, self._batched = [dict(each) for each in buckets], batched
        self.precisions = [each for each in GPU_PRECISIONS if each in allowed]
        self.precision = self.precisions[0]
        """The one that is raced now."""

    def tune_for(self, form: Form, left: float) -> None:
        """Say how long each bucket is tuned, of the seconds that are left."""
        seconds = _TUNE_SHARE * left / len(self._buckets)
        Tuning.prepare(form.path, min(max(seconds, _LEAST_TUNING_SECONDS), _MOST_TUNING_SECONDS))

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

    def as_prepared(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A sample that some bucket takes: brought to the optimum's shapes where none does."""
        return inputs if self.takes(inputs) else fitted(inputs, self._buckets[0])


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
