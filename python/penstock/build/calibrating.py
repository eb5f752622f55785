"""The recipe for eight bits that comes closest to the float model: several are made, the best one is corrected; whether
it is fast enough to be judged, and what has to stay in float where it is judged wrong.

Called by the driver, which gives the time and the judge.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir
from numpy.typing import NDArray

from penstock import quantize
from penstock.build.gate import Cosine, Gate, Verdict
from penstock.build.keeping import choose
from penstock.build.progress import Progress
from penstock.engine.plan import Tactic
from penstock.quantize import Calibration, Kept, Recipe, Scheme
from penstock.tactics import Measurement

Arrays = Mapping[str, NDArray[Any]]

# A quantized form this close to the float model is left as it is, well inside the usual gate of 0.999; corrections take
# calibration's time again.
_CLOSE: Final = 0.9996
# Of the time, for recipes; corrections of the best one have the rest.
_SHARE: Final = 0.5
# In all inputs together: a hundred pictures of 224 x 224, and never fewer samples than the other.
_NUMBERS: Final = 16_000_000
_FEWEST: Final = 8
# Times what the gate allows. Losses add up over layers: to lose so much less, nearly all of them have to be in float.
_OUT_OF_REACH: Final = 10.0
# What corrections take away of a loss at the most.
_CORRECTED: Final = 2.5
# Of all products; with fewer of them in eight bits there is nothing left to win.
_LEAST_IN_EIGHT_BITS: Final = 0.1
# A narrower tactic that fails the gate is worth repairing when it is at least this much faster than what passed.
_WORTH_REPAIRING: Final = 1.05


def picked(
    model: ir.Model,
    learned: Calibration,
    unseen: Calibration,
    schemes: Sequence[Scheme],
    reference: Callable[[Arrays], Arrays],
    deadline: float,
    progress: Progress,
    gate: Gate | None = None,
) -> tuple[Recipe, dict[str, float]]:
    """The recipe closest to `reference` on unseen samples, and how close each came.

    deadline  on the monotonic clock, after which no further one is made
    gate      what can't be brought near it is not corrected
    """
    began, learned = time.monotonic(), enough(learned)
    made = quantize.recipes(model, learned, schemes=schemes)
    best = quantize.pick(_until(began + _SHARE * (deadline - began), made), unseen, reference)
    cosines, of_schemes = dict(best.cosines), dict(best.of_schemes)

    def improved(recipe: Recipe) -> Iterator[Recipe]:
        return quantize.improve(recipe, model, learned)

    def polished(recipe: Recipe) -> Iterator[Recipe]:
        # Which scheme is closest before says little of which is afterwards.
        others = [each for each in of_schemes.values() if each.scheme != recipe.scheme]
        return quantize.polish(recipe, learned, others=others, deadline=deadline)

    for stage, better in (("improve", improved), ("polish", polished)):
        hopeless = gate is not None and out_of_reach(best.cosine, gate, _CORRECTED)
        if best.cosine < _CLOSE and not hopeless and time.monotonic() < deadline:
            progress.stage(stage, f"{best.recipe.name}, cosine {best.cosine:.4f}")
            made = itertools.chain([best.recipe], _until(deadline, better(best.recipe)))
            best = quantize.pick(made, unseen, reference)
            cosines |= best.cosines
            of_schemes |= best.of_schemes
    return best.recipe, cosines


def enough(data: Calibration) -> Calibration:
    """Some of the samples, taken evenly, where each has so many numbers that a few tell as much and take the time."""
    size = sum(array.size for array in data.samples[0].values())
    count = max(_FEWEST, _NUMBERS // max(1, size))
    total = len(data)
    if total <= count:
        return data
    return Calibration(tuple(data.samples[index * total // count] for index in range(count)))


def left_in_float(
    recipe: Recipe, layers: Sequence[str], judged: Callable[[ir.Model], Verdict], *, budget_seconds: float
) -> Kept:
    """Few and cheap layers that bring a recipe well inside the gate when they are not quantized, or else inside.

    layers  the most suspicious first.
    judged  the verdict on a quantized model.
    """
    costs = recipe.costs()

    def cost(kept: Iterable[str]) -> float:
        return sum(costs[layer] for layer in kept)

    found, _ = choose(
        lambda evaluate, passes: quantize.search(layers, evaluate, passes, budget_seconds=budget_seconds, costs=costs),
        lambda kept: judged(recipe.keeping(kept).model), cost,
        most=(1 - _LEAST_IN_EIGHT_BITS) * cost(layers),
    )  # fmt: skip
    return found


def out_of_reach(cosine: float, gate: Gate, corrected: float = 1.0) -> bool:
    """Whether layers left in float can't make up for what the best recipe loses on unseen samples.

    corrected  times less it may still come to lose.
    """
    return isinstance(gate, Cosine) and 1 - cosine > corrected * _OUT_OF_REACH * (1 - gate.minimum)


def worth_a_gate(form: str, timed: Sequence[Measurement], failed: Callable[[Tactic], bool]) -> Tactic | None:
    """The fastest tactic of a form in eight bits and what was made of it, where it is faster than what is wider by more
    than the gate's time is worth; `timed` has the fastest first.

    failed  whether a wider tactic is known to be refused.
    """
    ours = [each for each in timed if each.tactic.form.startswith(form)]
    wide = [each for each in timed if each.tactic.precision not in ("int8", "fp8") and not failed(each.tactic)]
    if not ours or (wide and ours[0].median_us * _WORTH_REPAIRING > wide[0].median_us):
        return None
    return ours[0].tactic


def _until(deadline: float, found: Iterable[Recipe]) -> Iterator[Recipe]:
    """What comes before the deadline, and at least one."""
    for each in found:
        yield each
        if time.monotonic() > deadline:
            return
