"""Fixes the shapes of inputs and computes everything that follows from them.

After `bind` with whole shapes a graph of ordinary layers has no shape arithmetic left: each tensor's shape is a row of
numbers. Called by optimize, and by build for static candidates.
"""

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from penstock import limits
from penstock.engine.plan import Shape, Shapes
from penstock.errors import InvalidArgument, ModelLoadError
from penstock.graph import inference
from penstock.graph.editing import Edit
from penstock.graph.passes.constants import fold_constants
from penstock.graph.passes.dead import remove_dead
from penstock.graph.sources import mark


def bind(model: ir.Model, shapes: Shapes) -> ir.Model:
    """A copy whose inputs have these shapes; -1 leaves a dimension free, inputs not named stay as they are.

    Raises InvalidArgument for a name, a rank or a size that contradicts the model, and for shapes that some operator
    inside it can't take.
    """
    copy = _own(model)
    inputs = {value.name: value for value in copy.graph.inputs}
    for name, shape in shapes.items():
        bound = inputs.get(name)
        if bound is None:
            raise InvalidArgument(f"no input {name!r} to bind, the model has {', '.join(map(str, inputs))}")
        bound.shape = _bound(name, bound.shape, shape)
    declared = {value: value.shape for value in copy.graph.outputs}
    _forget_claims(copy)
    try:
        inference.infer(copy, strict=True)
    except inference.ShapesContradict as error:
        asked = ", ".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise InvalidArgument(f"the model can't take the shapes {asked}: {error}") from None
    for simplify in (fold_constants, remove_dead):
        simplify(Edit(copy))
    inference.infer(copy)
    for value, said in declared.items():
        if value.shape is None:
            value.shape = said
    return copy


def prepare(model: ir.Model) -> ir.Model:
    """A copy with functions put in place, provenance written down, and shapes inferred from the inputs alone."""
    copy = _own(model)
    inference.forget(copy)
    inference.infer(copy)
    return copy


def mend_outputs(model: ir.Model) -> list[str]:
    """Give outputs the rank that follows from the inputs where the model claims another, or none; what was mended.

    torch 2.11 writes the states of recurrent layers with one axis too many. Libraries let that pass, but what is
    answered would not be what the engine says.
    """
    copy = _own(model)
    _forget_claims(copy)
    inference.infer(copy)
    said = []
    for claimed, found in zip(model.graph.outputs, copy.graph.outputs, strict=True):
        if found.shape is None or (claimed.shape is not None and len(claimed.shape) == len(found.shape)):
            continue
        if claimed.shape is not None:
            said.append(
                f"the model says that output {claimed.name!r} has {len(claimed.shape)} axes, and computes "
                f"{len(found.shape)}: its exporter was mistaken"
            )
        claimed.shape = ir.Shape(found.shape)
    return said


def _forget_claims(model: ir.Model) -> None:
    """Drop the shapes that the model states of what its nodes make, the outputs' too."""
    for value in model.graph.outputs:
        if value.producer() is not None:
            value.shape = None
    inference.forget(model)


def _own(model: ir.Model) -> ir.Model:
    bound_functions(model)
    copy = model.clone()
    mark(copy.graph)
    if copy.functions:
        InlinePass()(copy)
    return copy


def _bound(name: str, known: ir.Shape | None, shape: Shape) -> ir.Shape:
    if known is not None and len(known) != len(shape):
        raise InvalidArgument(f"input {name!r} has {len(known)} dimensions, got a shape of {len(shape)}: {list(shape)}")
    dims: list[int | str | None] = []
    for index, size in enumerate(shape):
        old = known[index] if known is not None else None
        if size < -1 or size == 0:
            raise InvalidArgument(f"input {name!r}: {size} is no size, expected one from 1, or -1 to leave it free")
        if isinstance(old, int) and size not in (-1, old):
            raise InvalidArgument(f"input {name!r} has {old} at dimension {index}, got {size}")
        free = old.value if isinstance(old, ir.SymbolicDim) else old
        dims.append(free if size == -1 else size)
    return ir.Shape(dims)


def bound_functions(model: ir.Model) -> None:
    """Functions may call functions: count what putting them in place would make, before it is made.

    Raises ModelLoadError beyond the bounds.
    """
    totals: dict[ir.OperatorIdentifier, int] = {}

    def total(identifier: ir.OperatorIdentifier, depth: int) -> int:
        if depth > limits.ONNX_DEPTH:
            raise ModelLoadError(f"functions call each other deeper than {limits.ONNX_DEPTH}")
        if identifier not in totals:
            inside = model.functions[identifier].all_nodes()
            called = [node.op_identifier() for node in inside]
            totals[identifier] = sum(total(each, depth + 1) if each in model.functions else 1 for each in called)
        return totals[identifier]

    calls = [node.op_identifier() for node in model.graph.all_nodes()]
    nodes = sum(total(each, 0) if each in model.functions else 1 for each in calls)
    if nodes > limits.ONNX_NODES:
        raise ModelLoadError(f"functions unfold to {nodes} nodes, expected at most {limits.ONNX_NODES}")
