"""Runs the passes until none of them changes the graph, and says what each one did.

Works on a copy; the weights are shared with the original until a pass computes new ones. Each pass is verified after it
changed something: the graph is valid and the signature is what it was. Called by build.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import onnx
import onnx_ir as ir

from penstock.engine.plan import Shapes
from penstock.errors import Internal, ModelLoadError
from penstock.graph import inference
from penstock.graph.binding import bind, prepare
from penstock.graph.editing import Edit
from penstock.graph.passes import PASSES, Pass
from penstock.graph.spelling import spell_out

# Rounds over all passes. Real models settle within three or four; a bound keeps two passes that undo each other finite.
_ROUNDS: Final = 16
# From here on elementwise operators broadcast as in NumPy; before, by attributes of their own.
_OLDEST_OPSET: Final = 7

_Face = list[tuple[str, str, list[int | None] | None]]


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One run of one pass."""

    name: str
    nodes_before: int
    nodes_after: int
    seconds: float
    changed: bool


@dataclass(frozen=True, slots=True)
class Optimized:
    """The simplified graph and how it came about, passes in the order they ran."""

    model: ir.Model
    records: tuple[PassRecord, ...]


def optimize(
    model: ir.Model, *, shapes: Shapes | None = None, then: Sequence[Pass] = (), known: Collection[str] | None = None
) -> Optimized:
    """Simplify a copy; with `shapes` it is bound first, and `then` these passes run once.

    known  the operators that a target has; others are written out by these where they have a definition.

    Names and order of inputs and outputs stay, and so do their shapes but for dimensions that were free and turn out to
    be fixed. Graphs of an operator set before 7 are only prepared: their operators broadcast by other rules.
    Raises what `bind` raises, ModelLoadError when the graph is not valid ONNX to begin with or its functions unfold
    beyond bounds, and Internal when a pass broke the graph.
    """
    before, started = len(model.graph), time.perf_counter()
    copy = bind(model, shapes) if shapes is not None else prepare(model)
    records = [_record("bind" if shapes is not None else "prepare", before, copy, started, changed=True)]
    if (wrong := _invalid(copy)) is not None:
        raise ModelLoadError(f"the graph is not valid ONNX, so it can't be optimized: {wrong}")
    if Edit(copy).opset < _OLDEST_OPSET:
        return Optimized(copy, tuple(records))
    passes: Sequence[Pass] = PASSES if known is None else (("spell-out", partial(spell_out, known=known)), *PASSES)
    for _ in range(_ROUNDS):
        settled = True
        for name, function in passes:
            record = run_pass(copy, name, function)
            records.append(record)
            settled = settled and not record.changed
        if settled:
            break
        inference.infer(copy)
    records += [run_pass(copy, name, function) for name, function in then]
    return Optimized(copy, tuple(records))


def run_pass(model: ir.Model, name: str, function: Callable[[Edit], None]) -> PassRecord:
    """One pass over the model itself; raises Internal when it left an invalid graph, or another signature."""
    before, started, face = len(model.graph), time.perf_counter(), _face(model)
    edit = Edit(model)
    function(edit)
    if edit.changed:
        if (wrong := _invalid(model)) is not None:
            raise Internal(f"pass {name} left an invalid graph: {wrong}")
        if not _kept(face, now := _face(model)):
            raise Internal(f"pass {name} changed the signature from {face} to {now}")
    return _record(name, before, model, started, changed=edit.changed)


def _invalid(model: ir.Model) -> str | None:
    """What ONNX's checker has against a graph."""
    try:
        onnx.checker.check_model(inference.skeleton(model))
    except onnx.checker.ValidationError as error:
        return " ".join(str(error).split())[:300]
    return None


def _record(name: str, before: int, model: ir.Model, started: float, *, changed: bool) -> PassRecord:
    return PassRecord(name, before, len(model.graph), time.perf_counter() - started, changed)


def _face(model: ir.Model) -> _Face:
    """Name, type and sizes of what goes in and comes out."""
    return [
        (
            value.name or "",
            str(value.type),
            None if value.shape is None else [size if isinstance(size, int) else None for size in value.shape],
        )
        for value in (*model.graph.inputs, *model.graph.outputs)
    ]


def _kept(before: _Face, after: _Face) -> bool:
    """Whether nothing changed but sizes that were free and are known now."""
    if len(before) != len(after):
        return False
    for old, new in zip(before, after, strict=True):
        if old[:2] != new[:2] or (old[2] is not None and (new[2] is None or len(old[2]) != len(new[2]))):
            return False
        if any(size not in (None, found) for size, found in zip(old[2] or (), new[2] or (), strict=False)):
            return False
    return True
