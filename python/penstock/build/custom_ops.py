"""Custom operators in a build: which are there, what types their results have, and every form cut around them.

A model whose operators are all known passes through untouched. Types come from the model's own value_info, else from
the registration, else from one call with an example: the graph before the operator runs in a child process, as
everything of a library does, and the function here, where it is registered anyway. Called by the driver and by forms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
from numpy.typing import NDArray

from penstock import graph, tactics
from penstock.build.judging import REFERENCE
from penstock.build.options import BuildOptions, profiles
from penstock.build.samples import noise
from penstock.engine import custom, parts
from penstock.engine.custom import OpName
from penstock.engine.plan import CustomOperator
from penstock.errors import ExecutionError, ModelLoadError, Unsupported
from penstock.graph import cutting, inference
from penstock.graph.signatures import spec
from penstock.tactics import Form, Limits
from penstock.tensors import TensorSpec, datatype_of

Array = NDArray[Any]
Arrays = Mapping[str, Array]

# Domains whose operators the libraries know themselves; what they lack of them they say.
_KNOWN: Final = frozenset(
    {
        *custom.STANDARD,
        *("ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"),
        *("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"),
    }
)

_DATA_TYPES: Final = {
    "BOOL": ir.DataType.BOOL,
    "UINT8": ir.DataType.UINT8,
    "UINT16": ir.DataType.UINT16,
    "UINT32": ir.DataType.UINT32,
    "UINT64": ir.DataType.UINT64,
    "INT8": ir.DataType.INT8,
    "INT16": ir.DataType.INT16,
    "INT32": ir.DataType.INT32,
    "INT64": ir.DataType.INT64,
    "FP16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "FP32": ir.DataType.FLOAT,
    "FP64": ir.DataType.DOUBLE,
    "BYTES": ir.DataType.STRING,
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The model to build from."""

    path: Path
    operators: tuple[CustomOperator, ...]
    """Those that Python runs; none, and the path is as it was."""


def prepare(path: Path, folder: Path, options: BuildOptions, limits: Limits) -> Prepared:
    """The model with a type and a rank for everything that custom operators give.

    Raises Unsupported (an operator that nobody registered, or one where the graph can't be cut), InvalidArgument (an
    outputs function that fails), ModelLoadError (a function fails on the example), CandidateLost (the graph before it).
    """
    model = graph.load(path)
    names = _used(model, path.name)
    if not names:
        return Prepared(path, ())
    model = cutting.inlined(model)
    _declare(model, names)
    if _untyped(model, names):
        seen = model
        for text in options.preprocess:
            seen = graph.boundary.preprocess(seen, text)
        found = _example(seen.clone(), names, folder / "example", options, limits)
        for node in cutting.custom_nodes(model, names):
            for value in node.outputs:
                if value.name in found:
                    _learn(value, found[value.name])
    target = folder / "typed" / path.name
    target.parent.mkdir()
    graph.save(model, target)
    return Prepared(target, tuple(CustomOperator(*name, custom.get(name).source) for name in names))


def write_parts(model: ir.Model, path: Path) -> None:
    """Beside a form's file, what it is cut into; nothing where no custom operator is in it."""
    for old in (*parts.files(path).values(), *path.parent.glob(f"{path.stem}.part*.onnx")):
        old.unlink()
    registered = _registered(model)
    found = cutting.cut(model, registered) if registered else None
    if found is None:
        return
    for name, part in found.models.items():
        graph.save(part, parts.part_path(path, name))
    if found.constants:
        parts.constants_path(path).write_bytes(parts.pack_constants(found.constants))
    path.with_name(path.stem + parts.SUFFIX).write_bytes(parts.to_bytes(found.chain))


def _registered(model: ir.Model) -> frozenset[OpName]:
    """Operators of any graph or function in the model that a function is registered for."""
    found = {OpName(node.domain, node.op_type) for node in _nodes(model)}
    return frozenset(name for name in found if custom.find(name) is not None)


def _nodes(model: ir.Model) -> list[ir.Node]:
    nodes = [node for each in model.graphs() for node in each]
    return nodes + [node for function in model.functions.values() for node in function.all_nodes()]


def _used(model: ir.Model, title: str) -> tuple[OpName, ...]:
    """Custom operators of the model, in order; raises Unsupported for those that nobody knows."""
    own = {OpName(domain, name) for domain, name, _ in model.functions}
    unknown: dict[OpName, str] = {}
    for node in _nodes(model):
        name = OpName(node.domain, node.op_type)
        known = name in own or name.domain in _KNOWN
        if not known and custom.find(name) is None:
            unknown.setdefault(name, node.name or "")
    if unknown:
        (name, where), more = next(iter(unknown.items())), len(unknown) - 1
        raise Unsupported(
            f"{title}: no library knows operator {name} (node {where!r})"
            + (f", nor {more} more ({', '.join(map(str, list(unknown)[1:4]))})" if more else "")
            + f'; register a Python function for it, @ps.custom_op("{name.domain}", "{name.name}"), '
            "and give its module with --custom-ops"
        )
    registered = _registered(model) - own
    if not registered:
        return ()
    nodes = cutting.custom_nodes(cutting.inlined(model), registered)
    return tuple(dict.fromkeys(OpName(node.domain, node.op_type) for node in nodes))


# ---- types ----


def _declare(model: ir.Model, names: tuple[OpName, ...]) -> None:
    """What registrations say, where the model says nothing: node by node, since one may depend on the one before."""
    for node in cutting.custom_nodes(model, names):
        if not any(_lacks(value) for value in node.outputs):
            continue
        op = custom.get(OpName(node.domain, node.op_type))
        if callable(op.outputs):
            inference.infer(model)
            if any(value is not None and _lacks(value) for value in node.inputs):
                continue  # an example tells the inputs first
            given = [None if value is None else spec(value) for value in node.inputs]
            found = custom.described(op, given, cutting.attributes(node)) or []
            for value, each in zip(node.outputs, found, strict=False):
                _learn(value, each)
        else:
            for value, datatype in zip(node.outputs, custom.types(op), strict=False):
                if value.type is None:
                    value.type = ir.TensorType(_DATA_TYPES[datatype])


def _lacks(value: ir.Value) -> bool:
    return bool(value.name) and (value.type is None or value.shape is None)


def _untyped(model: ir.Model, names: tuple[OpName, ...]) -> list[ir.Node]:
    return [node for node in cutting.custom_nodes(model, names) if any(map(_lacks, node.outputs))]


def _learn(value: ir.Value, found: TensorSpec) -> None:
    if value.type is None:
        value.type = ir.TensorType(_DATA_TYPES[found.datatype])
    if value.shape is None:
        value.shape = ir.Shape([size if size >= 0 else None for size in found.shape])


def _example(
    model: ir.Model, names: tuple[OpName, ...], folder: Path, options: BuildOptions, limits: Limits
) -> dict[str, TensorSpec]:
    """Type and rank of what custom operators give, by one call of each with noise at the smallest shapes."""
    folder.mkdir()
    inputs = tuple(spec(value) for value in model.graph.inputs)
    given = noise(inputs, profiles(options, inputs)[0].minimum)
    found: dict[str, TensorSpec] = {}
    while untyped := _untyped(model, names):
        inference.infer(model)
        ready = _reachable(model, untyped)
        values = {**given, **_before(model, ready, given, folder / f"{len(found)}.onnx", limits)}
        for node in ready:
            for value, array in zip(node.outputs, _results(node, values), strict=False):
                datatype = datatype_of(array.dtype)
                found[value.name or ""] = TensorSpec(value.name or "", datatype, (-1,) * array.ndim)
                _learn(value, found[value.name or ""])
    return found


def _reachable(model: ir.Model, untyped: list[ir.Node]) -> list[ir.Node]:
    """Those that no other of them stands before."""
    behind: set[ir.Value] = set()
    found: list[ir.Node] = []
    for node in model.graph:
        blocked = any(value in behind for value in cutting.reads(node))
        if node in untyped and not blocked:
            found.append(node)
        if blocked or node in untyped:
            behind.update(node.outputs)
    return found


def _before(model: ir.Model, nodes: list[ir.Node], given: Arrays, path: Path, limits: Limits) -> Arrays:
    """What flows into these nodes, by a child process that runs the graph up to them."""
    wanted = dict.fromkeys(
        value for node in nodes for value in node.inputs if value is not None and value.producer() is not None
    )
    if not wanted:
        return {}
    prefix = ir.Model(
        ir.convenience.extract(model.graph, list(model.graph.inputs), list(wanted)), ir_version=model.ir_version
    )
    graph.save(prefix, path)
    write_parts(prefix, path)
    with tactics.compiled(REFERENCE, Form(path, "fp32", False), limits=limits) as child:
        return child.run(given)


def _results(node: ir.Node, values: Arrays) -> list[Array]:
    """One call of the function. Raises ModelLoadError, Unsupported (an attribute)."""
    name = OpName(node.domain, node.op_type)
    arrays: list[Array | None] = []
    for value in node.inputs:
        if value is None:
            arrays.append(None)
        elif value.name in values:
            kind = "BF16" if value.dtype == ir.DataType.BFLOAT16 else ""
            arrays.append(parts.computable(values[value.name or ""], kind))
        else:
            assert value.const_value is not None
            arrays.append(value.const_value.numpy())
    try:
        results = custom.call(custom.get(name), node.name or "", arrays, cutting.attributes(node))
    except ExecutionError as error:
        raise ModelLoadError(
            f"{error.message}; it was called on noise, since nothing tells the types and shapes of its results: give "
            "outputs= as a function where it is registered"
        ) from error
    if len(results) < len(node.outputs):
        raise ModelLoadError(
            f"{custom.place(name, node.name or '')} returned {len(results)} arrays, the model has {len(node.outputs)}"
        )
    return results
