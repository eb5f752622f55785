"""Brings older graphs to the operator set in which weights can have a scale for each channel.

ONNX's own converter does the work; it forgets what nodes carry beside their attributes, so that is put back by name.
Called by place.
"""

from typing import Final

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common

from penstock.errors import Unsupported
from penstock.graph.editing import Edit
from penstock.graph.external import take_inside

# DequantizeLinear got `axis` in operator set 13 (onnx/docs/Changelog.md).
PER_CHANNEL: Final = 13


def raised(model: ir.Model) -> ir.Model:
    """A copy with operator set 13 or later; raises Unsupported when a node has no equivalent there."""
    if Edit(model).opset >= PER_CHANNEL:
        return model.clone()
    inside = model.clone()
    take_inside(inside)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(inside), PER_CHANNEL)
    except Exception as error:  # the converter throws C++ exceptions of several kinds
        text = " ".join(str(error).split())[:300]
        raise Unsupported(
            f"quantization needs operator set {PER_CHANNEL}, the model has {Edit(model).opset} and can't be converted: "
            f"{text}; export it with a newer one"
        ) from None
    converted = ir.from_proto(proto)
    converted.ir_version = max(model.ir_version, 7)  # the IR version of operator set 13
    converted.metadata_props.update(model.metadata_props)
    known = {node.name: node for node in model.graph.all_nodes() if node.name}
    for node in converted.graph.all_nodes():
        origin = known.get(node.name or "")
        if origin is not None:
            node.metadata_props.update(origin.metadata_props)
    # The converter makes constants of what were attributes: nameless, and nodes.
    common.LiftConstantsToInitializersPass(lift_all_constants=True)(converted)
    common.NameFixPass()(converted)
    return converted
