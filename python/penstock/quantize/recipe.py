"""From a model and calibration data to the quantized forms that are raced, and the choice among them.

`recipes` makes one form for each scheme and calibration method, `improve` makes the same of models that compute alike
and may be easier to quantize, `polish` makes up for what roundings did. `pick` compares forms with the float model on
samples that took no part in calibration. The gate of build has the last word; this only keeps it from being asked
about forms that another one beats. Called by build.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.errors import InvalidArgument
from penstock.quantize.bias import bias_errors, correct_bias
from penstock.quantize.calibrators import METHODS
from penstock.quantize.clipping import clipped, thresholds
from penstock.quantize.data import Array, Arrays, Calibration
from penstock.quantize.equalization import equalize
from penstock.quantize.layers import plan, products
from penstock.quantize.observe import SAMPLES, Statistics, cached, runner
from penstock.quantize.place import Narrow, quantize, watched
from penstock.quantize.progress import Progress, quiet
from penstock.quantize.rounding import rounded
from penstock.quantize.scheme import SCHEMES, Range, Scheme
from penstock.quantize.sensitivity import rank_by_noise
from penstock.quantize.smoothing import smooth

_PLAIN: Final = "inputs"  # the scheme that names leave out


@dataclass(frozen=True, slots=True)
class Recipe:
    """A quantized form and how it was made."""

    name: str
    """Of the form: `int8-kl`, `int8-kl-both`, `int8-kl-smoothed`."""
    model: ir.Model
    """With Q/DQ."""
    base: ir.Model
    """The float model it was made of: for the same again with some layers kept."""
    method: str
    scheme: Scheme
    ranges: Mapping[str, Range]
    candidates: int
    """Thresholds examined, over all tensors."""
    weights: Mapping[str, Narrow] = field(default_factory=dict)
    """By layer, where they are not rounded to the nearest."""

    def keeping(self, layers: Iterable[str]) -> "Recipe":
        """The same with these layers left in float."""
        kept = tuple(layers)
        return replace(self, model=self.placed(self.base, kept))

    def placed(self, base: ir.Model, keep: Collection[str] = ()) -> ir.Model:
        """The quantized form of a float model with the same layers."""
        return quantize(base, self.ranges, keep=keep, scheme=self.scheme, weights=self.weights)

    def costs(self) -> dict[str, float]:
        """By layer: what it takes to compute it."""
        return {layer.node.name or "": products(layer) for layer in plan(self.base, self.scheme).layers}

    def noisiest(self, data: Calibration) -> list[str]:
        """Names of the layers, by how much noise quantizing each alone makes; the worst first."""
        ranked = rank_by_noise(self.base, self.ranges, data, scheme=self.scheme, weights=self.weights)
        return [each.layer for each in ranked]


def recipes(
    model: ir.Model,
    data: Calibration,
    *,
    schemes: Sequence[Scheme] = tuple(SCHEMES.values()),
    methods: Sequence[str] = tuple(METHODS),
    samples: int = SAMPLES,
    cache: Path | None = None,
    progress: Progress = quiet,
) -> Iterator[Recipe]:
    """Forms of an (optimized) FP32 model, one scheme after the other; nothing where no layer can be quantized.

    cache  folder of statistics; the same model and data are not observed twice
    """
    statistics = observed(model, data, schemes, samples=samples, cache=cache, progress=progress)
    if not statistics.tensors:
        return
    for scheme in schemes:
        for method in methods:
            yield _make(f"int8-{method}", model, statistics, method, scheme)


def observed(
    model: ir.Model,
    data: Calibration,
    schemes: Sequence[Scheme],
    *,
    samples: int = SAMPLES,
    cache: Path | None = None,
    progress: Progress = quiet,
) -> Statistics:
    """Statistics of all tensors that these schemes may quantize."""
    names = watched(model, schemes)
    if not names:
        return Statistics({}, 0)
    return cached(cache, model, data, names, samples=samples, progress=progress)


def _make(name: str, base: ir.Model, statistics: Statistics, method: str, scheme: Scheme) -> Recipe:
    found = thresholds(statistics, method, scheme)
    spans = clipped(statistics, found)
    examined = sum(each.candidates for each in found.values())
    return Recipe(_named(name, scheme), quantize(base, spans, scheme=scheme), base, method, scheme, spans, examined)


def _named(name: str, scheme: Scheme) -> str:
    return name if scheme.name == _PLAIN else f"{name}-{scheme.name}"


def improve(
    recipe: Recipe, model: ir.Model, data: Calibration, *, samples: int = SAMPLES, progress: Progress = quiet
) -> Iterator[Recipe]:
    """Variations: weights equalised, activations smoothed; each only where it changes something."""
    for suffix, changed in (("equalized", equalize(model)), ("smoothed", smooth(model, data))):
        if changed is None:
            continue
        statistics = observed(changed, data, (recipe.scheme,), samples=samples, progress=progress)
        made = _make(recipe.name, changed, statistics, recipe.method, recipe.scheme)
        yield replace(made, name=f"{recipe.name}-{suffix}")


def polish(
    recipe: Recipe,
    data: Calibration,
    *,
    others: Iterable[Recipe] = (),
    deadline: float = math.inf,
    progress: Progress = quiet,
) -> Iterator[Recipe]:
    """Variations: biases corrected, weights rounded together, and both; each only where it changes something.

    others    polished afterwards. Those of the same float model take the same rounded weights, which hardly depend on
              what else is quantized
    deadline  on the monotonic clock, after which no further weights are rounded
    """
    yield from _corrected(recipe, data)
    known: list[tuple[Recipe, Mapping[str, Narrow]]] = []
    for each in (recipe, *others):
        weights = next((found for other, found in known if _same_weights(each, other)), None)
        if weights is None:
            weights = rounded(each.base, each.ranges, data, scheme=each.scheme, deadline=deadline, progress=progress)
            known.append((each, weights))
        if weights:
            together = replace(each, name=f"{each.name}-rounded", weights=weights)
            together = replace(together, model=together.placed(together.base))
            yield together
            yield from _corrected(together, data)


def _same_weights(one: Recipe, other: Recipe) -> bool:
    return one.base is other.base and one.scheme.weight_bits == other.scheme.weight_bits


def _corrected(recipe: Recipe, data: Calibration) -> Iterator[Recipe]:
    errors = bias_errors(recipe.base, recipe.ranges, data, scheme=recipe.scheme, weights=recipe.weights)
    shifted = correct_bias(recipe.base, errors)
    if shifted is not None:
        yield replace(recipe, name=f"{recipe.name}-corrected", model=recipe.placed(shifted), base=shifted)


@dataclass(frozen=True, slots=True)
class Picked:
    """The recipe that comes closest."""

    recipe: Recipe
    cosine: float
    """Least over held-out samples and float outputs."""
    cosines: Mapping[str, float]
    """Of every recipe that was compared."""
    of_schemes: Mapping[str, Recipe]
    """The closest of each scheme, by its name."""


def pick(forms: Iterable[Recipe], held_out: Calibration, reference: Callable[[Arrays], Arrays]) -> Picked:
    """The form closest to `reference` on samples that it was not calibrated on; the first one where several are equal.

    Raises InvalidArgument when there are no forms.
    """
    expected = [dict(reference(sample)) for sample in held_out]
    cosines: dict[str, float] = {}
    closest: dict[str, Recipe] = {}
    for form in forms:
        names = [value.name or "" for value in form.model.graph.outputs]
        with runner(form.model, names) as run:
            cosines[form.name] = min(
                agreement(wanted, run(sample)) for wanted, sample in zip(expected, held_out, strict=True)
            )
        known = closest.get(form.scheme.name)
        if known is None or cosines[form.name] > cosines[known.name]:
            closest[form.scheme.name] = form
    if not closest:
        raise InvalidArgument("no quantized form to pick from: the model has no layer that can be quantized")
    best = max(closest.values(), key=lambda form: cosines[form.name])
    return Picked(best, cosines[best.name], cosines, closest)


def agreement(expected: Arrays, found: Arrays) -> float:
    """Least cosine over the float outputs; -1 where one is not finite, 1 where there are none."""
    return min(
        (_cosine(array, found[name]) for name, array in expected.items() if array.dtype.kind == "f"), default=1.0
    )


def _cosine(expected: Array, found: Array) -> float:
    a, b = expected.astype(np.float64).reshape(-1), found.astype(np.float64).reshape(-1)
    if a.shape != b.shape or not np.isfinite(b).all():
        return -1.0
    lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    if lengths == 0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return float(a @ b) / lengths
