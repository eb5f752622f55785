"""Writes the decisions of `layers.plan` into a graph: QuantizeLinear and DequantizeLinear around what becomes integer.

The result is standard ONNX that computes in float what the libraries then compute in integers. Weights are stored as
int8 with a scale for each output channel, so that they take a quarter of the room. Nothing but Q/DQ nodes and constants
is added and no node is renamed, so that profiles still join to the source's names.

Called by recipe, sensitivity and build.
"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock.errors import InvalidArgument
from penstock.graph.editing import Edit, constant, input_of, is_operator, number
from penstock.quantize.layers import FUSED_ACTIVATIONS, PASS_THROUGH, Layer, Plan, plan
from penstock.quantize.opset import raised
from penstock.quantize.scheme import SCHEMES, Grid, Range, Scheme

DEFAULT: Final = SCHEMES["inputs"]

# An int32 bias is added to sums of products; half of the range is theirs.
_BIAS_LIMIT: Final = 2**30


class Narrow(NamedTuple):
    """Weights in eight bits."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    """One for each output channel."""


NEAREST: Final[Mapping[str, Narrow]] = MappingProxyType({})


def layers(model: ir.Model, scheme: Scheme = DEFAULT) -> tuple[str, ...]:
    """Names of the nodes that would be computed in integers, in the order of the graph."""
    return tuple(layer.node.name or "" for layer in plan(model, scheme).layers)


def watched(model: ir.Model, schemes: Iterable[Scheme] = SCHEMES.values()) -> tuple[str, ...]:
    """Names of the tensors whose ranges `quantize` needs, for any of these schemes."""
    names: dict[str, None] = {}
    for scheme in schemes:
        for group in plan(model, scheme).groups:
            names.update((value.name or "", None) for value in group)
    return tuple(names)


def quantize(
    model: ir.Model,
    ranges: Mapping[str, Range],
    *,
    keep: Collection[str] = (),
    scheme: Scheme = DEFAULT,
    weights: Mapping[str, Narrow] = NEAREST,
) -> ir.Model:
    """A quantized copy.

    ranges   what each tensor of `watched` is clipped to; layers whose input has none stay float
    keep     names of nodes, of this model or of its source, that stay float with all they read
    weights  by name of the layer: weights that are rounded already; the others are rounded to the nearest

    Raises InvalidArgument for a name in `keep` that the model does not have, Unsupported for operator sets that can't
    be converted.
    """
    copy = raised(model)
    _check_names(copy, keep)
    placement = _Placement(copy, ranges, scheme, plan(copy, scheme, keep), weights)
    placement.write()
    return copy


def _check_names(model: ir.Model, keep: Collection[str]) -> None:
    from penstock.graph import sources

    if not keep:
        return
    known: set[str] = set()
    for node in model.graph.all_nodes():
        known.update((node.name or "", *sources(node)))
    unknown = sorted(set(keep) - known)
    if unknown:
        raise InvalidArgument(f"no node of the model is named {', '.join(unknown[:5])}; `inspect` lists the names")


class _Placement:
    def __init__(
        self,
        model: ir.Model,
        ranges: Mapping[str, Range],
        scheme: Scheme,
        found: Plan,
        rounded: Mapping[str, Narrow],
    ) -> None:
        self.edit = Edit(model)
        self.rounded = rounded
        self.scheme = scheme
        self.found = found
        self.grids: dict[ir.Value, Grid] = {}
        for group in found.groups:
            spans = [ranges[value.name or ""] for value in group if value.name in ranges]
            if not spans or any(value.name not in ranges for value in group if _is_origin(value, group)):
                continue
            span = spans[0]
            for other in spans[1:]:
                span = span.union(other)
            self.grids.update(dict.fromkeys(group, scheme.grid(span)))
        self.layers = [layer for layer in found.layers if self.is_integer(layer)]
        self.layer_nodes = {layer.node for layer in self.layers}
        self.kept = set(found.kept)
        self.constants: dict[tuple[Any, ...], ir.Value] = {}

    def is_integer(self, layer: Layer) -> bool:
        second = layer.node.inputs[1]
        return layer.activation in self.grids and (layer.weight is not None or second in self.grids)

    def write(self) -> None:
        order = {node: position for position, node in enumerate(self.edit.graph)}
        readers = {value: self.readers(value) for value in self.grids}
        for value, grid in self.grids.items():
            if readers[value]:
                self.activation(value, grid, readers[value], order)
        for layer in self.layers:
            if layer.weight is not None:
                self.weights(layer, layer.weight)
        _drop_unused(self.edit.graph)

    # ---- activations ----

    def readers(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """Uses that are to read eight bits: all of them where integers are written, else those that need them."""
        everyone = self.writes_integers(value.producer())
        return [
            (use.node, use.idx)
            for use in value.uses()
            if use.node.graph is self.edit.graph
            and use.node not in self.kept
            and (everyone or use.node in self.layer_nodes or self.stays_integer(use.node))
        ]

    def stays_integer(self, node: ir.Node) -> bool:
        """Whether a node between layers has eight bits on both sides."""
        if is_operator(node, *PASS_THROUGH):
            moved = input_of(node, 0)
            return moved in self.grids and any(value in self.grids for value in node.outputs)
        if is_operator(node, "Concat"):
            return node.outputs[0] in self.grids
        return node in self.found.adds or (is_operator(node, "Add") and all(part in self.grids for part in node.inputs))

    def writes_integers(self, node: ir.Node | None) -> bool:
        if is_operator(node, *FUSED_ACTIVATIONS) and node is not None and node.inputs[0] is not None:
            before = node.inputs[0].producer()
            if before is not None and len(list(node.inputs[0].uses())) == 1:
                node = before
        return node is not None and (node in self.layer_nodes or self.stays_integer(node))

    def activation(
        self, value: ir.Value, grid: Grid, readers: list[tuple[ir.Node, int]], order: Mapping[ir.Node, int]
    ) -> None:
        first = min((node for node, _ in readers), key=lambda node: order[node])
        producer = value.producer()
        stands_for = [producer] if producer is not None else [first]
        scale = self.shared(("scale", grid.scale), f"{value.name}_scale", np.asarray(grid.scale, np.float32))
        zero = self.shared(
            ("zero", grid.zero_point, grid.datatype),
            f"{value.name}_zero_point",
            np.asarray(grid.zero_point, np.dtype(grid.datatype)),
        )
        narrow = self.edit.insert(first, "QuantizeLinear", [value, scale, zero], {}, stands_for)
        narrow.type = ir.TensorType(ir.DataType.UINT8 if grid.datatype == "uint8" else ir.DataType.INT8)
        wide = self.edit.insert(first, "DequantizeLinear", [narrow, scale, zero], {}, stands_for)
        narrow.shape, wide.type, wide.shape = value.shape, ir.TensorType(ir.DataType.FLOAT), value.shape
        for node, index in readers:
            node.replace_input_with(index, wide)

    def shared(self, key: tuple[Any, ...], name: str, array: NDArray[Any]) -> ir.Value:
        if key not in self.constants:
            self.constants[key] = self.edit.constant(name, array)
        return self.constants[key]

    # ---- weights ----

    def weights(self, layer: Layer, weight: ir.Value) -> None:
        array = constant(weight)
        if array is None:  # as_layer has seen that it is one
            return
        bias = constant(input_of(layer.node, 2)) if layer.node.op_type in ("Conv", "Gemm") else None
        as_int32 = (
            self.scheme.int32_bias
            and bias is not None
            and bias.ndim == 1
            and len(bias) == array.shape[layer.axis]
            and number(layer.node, "alpha", 1.0) == number(layer.node, "beta", 1.0) == 1.0
        )
        activation_scale = self.grids[layer.activation].scale
        least = np.abs(bias) / (activation_scale * _BIAS_LIMIT) if as_int32 and bias is not None else None
        narrow, scales = quantize_weight(array, layer.axis, bits=self.scheme.weight_bits, least_scale=least)
        given = self.rounded.get(layer.node.name or "")
        # A bias may ask for larger steps than the weights were rounded in.
        if given is not None and np.array_equal(given.scales, scales):
            narrow = given.values
        if layer.node.op_type == "Conv" and self.needs_bias(layer.node, bias):
            self.edit.set_input(layer.node, 2, self.edit.constant(f"{layer.node.name}_bias", _no_bias(len(scales))))
            as_int32 = False
        # Two layers may share a weight, and their axes differ when they are of different kinds.
        self.dequantized(layer, 1, f"{weight.name}", narrow, scales, layer.axis)
        if as_int32 and bias is not None:
            steps = scales.astype(np.float64) * activation_scale
            name = input_of(layer.node, 2)
            self.dequantized(
                layer,
                2,
                f"{name.name if name is not None else 'bias'}",
                np.clip(np.rint(bias / steps), -(2**31), 2**31 - 1).astype(np.int32),
                steps.astype(np.float32),
                0,
            )

    def needs_bias(self, node: ir.Node, bias: NDArray[Any] | None) -> bool:
        """Whether OpenVINO would compute this convolution wrongly.

        Seen with 2026.4.1: an integer convolution without bias whose float answer has several readers (pooled for a
        gate, and multiplied with it) came out with cosine 0.74. With a bias that is not zero the same graph is right;
        one of zeros is taken out before.
        """
        answer = node.outputs[0]
        without = input_of(node, 2) is None or (bias is not None and not bias.any())
        return without and answer not in self.grids and len(answer.uses()) > 1

    def dequantized(
        self, layer: Layer, index: int, name: str, narrow: NDArray[Any], scales: NDArray[np.float32], axis: int
    ) -> None:
        inputs = [
            self.edit.constant(f"{name}_quantized", narrow),
            self.edit.constant(f"{name}_scale", scales),
            self.edit.constant(f"{name}_zero_point", np.zeros(len(scales), narrow.dtype)),
        ]
        wide = self.edit.insert(layer.node, "DequantizeLinear", inputs, {"axis": axis}, [layer.node])
        wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(narrow.shape)
        self.edit.set_input(layer.node, index, wide)


def _no_bias(channels: int) -> NDArray[np.float32]:
    """Not zero, and lost in any sum that is not."""
    return np.full(channels, 2.0**-100, np.float32)


def quantize_weight(
    weight: NDArray[Any], axis: int, *, bits: int = 8, least_scale: NDArray[np.float64] | None = None
) -> Narrow:
    """int8 values, and a scale for each index of `axis`: symmetric, the largest weight of a channel is the last step.

    least_scale  per channel; what a bias needs to fit 32 bits
    """
    others = tuple(each for each in range(weight.ndim) if each != axis)
    top = 2 ** (bits - 1) - 1
    largest = np.abs(weight.astype(np.float64)).max(axis=others)
    # A channel without weights takes the finest step of the others: its bias is quantized with it.
    positive = largest[largest > 0]
    scales = np.where(largest > 0, largest, positive.min() if positive.size else 1.0) / top
    scales = np.maximum(scales, 2.0**-100)
    if least_scale is not None:
        scales = np.maximum(scales, least_scale)
    scales = scales.astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    narrow = np.clip(np.rint(weight / scales.reshape(shape).astype(np.float64)), -top, top).astype(np.int8)
    return Narrow(narrow, scales)


def _is_origin(value: ir.Value, group: list[ir.Value]) -> bool:
    """Whether nothing else of the group gives this tensor its values, so that its range has to be known."""
    node = value.producer()
    return node is None or not any(part in group for part in node.inputs if part is not None)


def _drop_unused(graph: ir.Graph) -> None:
    outputs = set(graph.outputs)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]
