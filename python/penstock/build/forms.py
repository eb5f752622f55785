"""The graphs that take part in a race, written to files: the source, and what passes make of it.

The gate compares whatever wins with the source, so a pass that is wrong loses a form, never a build. Called by the
driver.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from penstock import graph
from penstock.build.custom_ops import write_parts
from penstock.engine.cuda import form as lowered
from penstock.engine.lowered import LoweredGraph
from penstock.engine.plan import LOWERED, OPTIMIZED, ROUNDED_KEY, SOURCE, Profile, Reduction, Shapes
from penstock.engine.routing import batched
from penstock.errors import Internal, ModelLoadError
from penstock.graph.eight_bits import in_fp8, in_int8, unquantized
from penstock.graph.lowering import SUPPORTED, lower
from penstock.graph.optimizing import PassRecord
from penstock.quantize import Range
from penstock.tactics.candidates import Form
from penstock.tensors import TensorSpec

_LOG = logging.getLogger(__name__)

# The suffix of forms that leave a reduction to be computed beside the library call.
BESIDE = "-beside"

# Of e4m3: ranges are cut where integers gain from it, and these numbers keep all their digits up to the end.
_HEADROOM = 4.0


@dataclass(slots=True)
class Forms:
    """Everything that was made, by name."""

    folder: Path
    source: ir.Model
    """With preprocessing and reductions inside, and otherwise as the user's file."""

    optimized: ir.Model
    plain: ir.Model
    """Optimised, without the reductions: the same as `optimized` where there are none."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    """What the engine answers: reductions applied."""

    plain_outputs: tuple[TensorSpec, ...]
    """What libraries answer where reductions are computed beside them."""

    files: dict[str, Form] = field(default_factory=dict)
    sources: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """By form: the names of its nodes, and the source model's nodes that each stands for."""

    passes: tuple[PassRecord, ...] = ()
    reductions: tuple[Reduction, ...] = ()
    notes: tuple[str, ...] = ()
    """What the evidence should say of them."""

    def add(self, name: str, model: ir.Model, *, precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32") -> Form:
        """Write a form; the same name again replaces it."""
        path = self.folder / f"{name}.onnx"
        graph.save(model, path)
        write_parts(model, path)
        self.sources[name] = {node.name or "": graph.sources(node) for node in model.graph}
        made = Form(
            path, precision, precision == "int8", any(ROUNDED_KEY in node.metadata_props for node in model.graph)
        )
        self.files[name] = made
        return made


def add_lowered(forms: Forms, buckets: Sequence[Shapes]) -> Form:
    """Lower the optimised graph at every bucket, into one file. Raises Unsupported for what a GPU has no step for."""

    return _add_steps(forms, LOWERED, forms.source, buckets, "fp32", lower)


def add_int8(forms: Forms, name: str, model: ir.Model, buckets: Sequence[Shapes]) -> Form:
    """The same of a graph with Q/DQ, as steps in INT8. Raises Unsupported for Q/DQ that GPUs don't take."""
    found = unquantized(model)
    return _add_steps(forms, name, found.model, buckets, "int8", lambda bound: in_int8(bound, found))


def add_fp8(forms: Forms, name: str, model: ir.Model, ranges: Mapping[str, Range], buckets: Sequence[Shapes]) -> Form:
    """The same of a float graph, its layers in e4m3: of numbers up to the ends of these ranges."""
    most = {each: _HEADROOM * max(-span.low, span.high) for each, span in ranges.items()}
    return _add_steps(forms, name, model, buckets, "fp8", lambda bound: in_fp8(bound, most))


def _add_steps(
    forms: Forms,
    name: str,
    model: ir.Model,
    buckets: Sequence[Shapes],
    precision: str,
    lowering: Callable[[ir.Model], tuple[LoweredGraph, lowered.Weights]],
) -> Form:
    def at(shapes: Shapes) -> tuple[Shapes, LoweredGraph, lowered.Weights]:
        bound = graph.optimize(model, shapes=shapes, known=SUPPORTED).model
        steps, weights = lowering(bound)
        forms.sources.setdefault(name, {}).update({node.name or "": graph.sources(node) for node in bound.graph})
        return shapes, steps, weights

    path = forms.folder / f"{name}.safetensors"
    lowered.write(path, (at(shapes) for shapes in buckets))  # one by one: their weights are never there all at once
    forms.files[name] = found = Form(path, precision, precision != "fp32")
    return found


def prepare(
    model: ir.Model,
    folder: Path,
    *,
    reduce: Sequence[str],
    profiles: Sequence[Profile],
    on_gpu: bool,
) -> Forms:
    """Apply reductions, optimise, and write the forms in FP32.

    profiles  dimensions that have one size in all of them are bound, and shape arithmetic becomes constants; the batch
              stays free, since calls may bring any number of rows.
    on_gpu    what is optimised is for our own steps, not for libraries on a CPU.

    Raises NotFound, ModelLoadError, InvalidArgument (a preprocessing or reduction that does not fit the model).
    """
    plain = model
    reductions: list[Reduction] = []
    for text in reduce:
        model, _ = graph.boundary.reduce(model, text, beside=False)
        _, reduction = graph.boundary.reduce(plain, text, beside=True)
        reductions.append(reduction)
    notes: list[str] = []
    static = _fixed(profiles, free_rows=batched(*graph.signature(model)))
    then = () if on_gpu else graph.FOR_CPU
    done = _optimized(model, static, then, notes)
    without = _optimized(plain, static, then, notes).model if reductions else done.model
    inputs, outputs = graph.signature(model)
    forms = Forms(
        folder, model, done.model, without, inputs, outputs, graph.signature(plain)[1], passes=done.records,
        reductions=tuple(reductions), notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip
    forms.add(SOURCE, model)
    forms.add(OPTIMIZED, done.model)
    if reductions:
        forms.add(OPTIMIZED + BESIDE, without)
    return forms


def _fixed(profiles: Sequence[Profile], *, free_rows: bool) -> Shapes:
    """The sizes that all profiles agree on; -1 elsewhere."""
    found: dict[str, tuple[int, ...]] = {}
    for name, first in profiles[0].minimum.items():
        sides = [side[name] for each in profiles for side in (each.minimum, each.maximum)]
        sizes = [size if all(other[at] == size for other in sides) else -1 for at, size in enumerate(first)]
        found[name] = (-1, *sizes[1:]) if free_rows and sizes else tuple(sizes)
    return found


def _optimized(model: ir.Model, static: Shapes, then: Sequence[graph.Pass], notes: list[str]) -> graph.Optimized:
    """The graph as it is, with a note, where passes can't be applied: libraries run some invalid ONNX, too."""
    try:
        return graph.optimize(model, shapes=static, then=then)
    except (ModelLoadError, Internal) as error:
        _LOG.warning("%s", error.message)
        notes.append(error.message)
        return graph.Optimized(model, ())


def beside(name: str) -> bool:
    """Whether a form leaves the reductions to be computed after the library call."""
    return name.endswith(BESIDE)
