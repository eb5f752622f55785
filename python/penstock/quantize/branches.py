"""Every layer beside its own quantized twin, on the same float input: what quantizing this one layer alone would do.

`beside` adds to a copy of the graph, for each layer, a second node that reads the activation through Q/DQ and rounded
weights, and the difference of the two outputs. One run of that graph answers for all layers at once, and errors of one
layer do not hide in those of another. Called by sensitivity and corrections.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Edit, constant
from penstock.quantize.layers import Layer, plan
from penstock.quantize.opset import raised
from penstock.quantize.place import NEAREST, Narrow, quantize_weight
from penstock.quantize.probes import probe
from penstock.quantize.scheme import Range, Scheme


@dataclass(frozen=True, slots=True)
class Branch:
    """One layer of the copy."""

    layer: Layer
    answer: ir.Value
    difference: ir.Value
    """Quantized minus float."""


class Branches:
    """A copy of the model with a branch for every layer whose input has a range."""

    def __init__(
        self,
        model: ir.Model,
        ranges: Mapping[str, Range],
        scheme: Scheme,
        weights: Mapping[str, Narrow] = NEAREST,
    ) -> None:
        self.model = raised(model)
        self.edit = Edit(self.model)
        self._ranges = ranges
        self._scheme = scheme
        self._weights = weights
        self.branches: dict[str, Branch] = {}
        for layer in plan(self.model, scheme).layers:
            if layer.activation.name in ranges and layer.weight is not None:
                self.branches[layer.node.name or ""] = self._beside(layer, layer.weight)

    def finish(self) -> ir.Model:
        self.model.graph.sort()
        return self.model

    def _beside(self, layer: Layer, weight: ir.Value) -> Branch:
        node = layer.node
        grid = self._scheme.grid(self._ranges[layer.activation.name or ""])
        scale = self.edit.constant(f"{node.name}_scale", np.asarray(grid.scale, np.float32))
        zero = self.edit.constant(f"{node.name}_zero", np.asarray(grid.zero_point, np.dtype(grid.datatype)))
        datatype = ir.DataType.UINT8 if grid.datatype == "uint8" else ir.DataType.INT8
        narrow = probe(self.edit, "QuantizeLinear", [layer.activation, scale, zero], datatype=datatype)
        wide = probe(self.edit, "DequantizeLinear", [narrow, scale, zero])
        array = constant(weight)
        rounded = weight
        if array is not None:
            values, scales = self._weights.get(node.name or "") or quantize_weight(
                array, layer.axis, bits=self._scheme.weight_bits
            )
            shape = [1] * array.ndim
            shape[layer.axis] = -1
            rounded = self.edit.constant(f"{node.name}_rounded", values * scales.reshape(shape))
        twin = ir.node(
            node.op_type,
            [wide, rounded, *node.inputs[2:]],
            dict(node.attributes.items()),
            name=f"{node.name}_twin",
        )
        twin.outputs[0].name = f"{node.name}_twin_output"
        self.model.graph.append(twin)
        answer = node.outputs[0]
        return Branch(layer, answer, probe(self.edit, "Sub", [twin.outputs[0], answer]))
