"""Operators that others can say are written out in those: Attention, RMSNormalization, QuantizeLinear, LRN, ...

Newer sets of operators name what exporters used to write in many nodes. Libraries on a CPU have kernels for the names;
a lowering that knows the many nodes needs no second one. Most definitions are those of the `onnx` package, which are
ONNX's own; the rest are in `definitions`. Called by optimize for targets that say which operators they know.
"""

from collections.abc import Collection
from typing import Any, Final

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from penstock.graph.definitions import definition, dequantized
from penstock.graph.editing import Edit
from penstock.graph.sources import inherit

_DOMAIN: Final = "penstock.definitions"


def spell_out(edit: Edit, known: Collection[str]) -> None:
    """Replace operators that are not known and that have a definition for these types and shapes.

    What takes their place may have to be spelled out in turn, once types and shapes are inferred again. Inner graphs
    stay as they are.
    """
    model, opset, found = edit.model, edit.opset, False
    for number, node in enumerate(list(edit.graph)):
        if node.domain not in ("", "ai.onnx") or ("DequantizeLinear" not in known and _folded(edit, node)):
            continue
        body = definition(node, opset)
        if body is None and node.op_type not in known:
            body = _of_onnx(node, opset)
        if body is None or any(attribute.HasField("g") for each in body.node for attribute in each.attribute):
            continue
        del body.output[len(node.outputs) :]
        unmade = _make_all(body)
        if any(value.uses() or edit.is_output(value) for value, name in zip(node.outputs, unmade, strict=True) if name):
            continue
        for value in node.outputs:  # what the node leaves out is made all the same
            value.name = value.name or edit.fresh(f"{node.name}_unused")
        body.domain, body.name = _DOMAIN, f"{node.op_type}.{number}"
        del body.opset_import[:]
        body.opset_import.append(onnx.helper.make_opsetid("", opset))
        function = ir.serde.deserialize_function(body)
        for each in function:
            inherit(each, [node])
        node.domain, node.op_type, node.version = body.domain, body.name, None
        model.functions[function.identifier()] = function
        edit.changed = found = True
    if found:
        model.opset_imports[_DOMAIN] = 1
        InlinePass()(model)
        del model.opset_imports[_DOMAIN]


def _folded(edit: Edit, node: ir.Node) -> bool:
    """Weights that are stored in eight bits become what they stand for."""
    array = dequantized(node) if node.op_type == "DequantizeLinear" else None
    if array is None or edit.is_output(node.outputs[0]):
        return False
    edit.forward(node.outputs[0], edit.constant(node.outputs[0], array))
    edit.remove(node)
    return True


def _of_onnx(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    """What ONNX says a node with these attributes and inputs of these types is."""
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset, "")  # stubs lack what functions it has
    except onnx.defs.SchemaError:
        return None
    if not schema.has_function and not schema.has_context_dependent_function:
        return None
    fixed = schema.has_function
    all_versions = schema.function_opset_versions if fixed else schema.context_dependent_function_opset_versions
    versions = [version for version in all_versions if version <= opset]
    if not versions:
        return None
    if fixed:
        text = schema.get_function_with_opset_version(max(versions))
        for name, attribute in schema.attributes.items():  # a body refers to them
            if attribute.default_value.type and name not in node.attributes:
                node.attributes.add(ir.serde.deserialize_attribute(attribute.default_value))
    else:
        types = [b"" if value is None else ir.to_proto(value).type.SerializeToString() for value in node.inputs]
        proto = ir.to_proto(node).SerializeToString()
        text = schema.get_context_dependent_function_with_opset_version(max(versions), proto, types)
    return onnx.FunctionProto.FromString(text) if text else None


def _make_all(body: onnx.FunctionProto) -> list[bool]:
    """A definition names outputs that it doesn't make where the node has none of them. They become a number that nobody
    reads; returns which.
    """
    made = {name for node in body.node for name in node.output}
    unmade = [name not in made for name in body.output]
    body.node.extend(
        onnx.helper.make_node("Constant", [], [name], value_int=0) for name in body.output if name not in made
    )
    return unmade
