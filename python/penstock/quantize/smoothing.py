"""Large channels of a layer's input are moved into its weights, where every channel may be large.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023,
equation 4, for matrix products and, in the same way, for convolutions whose input comes out of float arithmetic (GELU,
HardSwish). Inputs that an integer layer writes are left alone: a Mul between would break the chain. The model computes
what it did, up to rounding. Called by recipe.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock.graph.editing import Edit, constant, input_of, integer, is_operator
from penstock.quantize.data import Calibration
from penstock.quantize.equalization import along
from penstock.quantize.layers import FUSED_ACTIVATIONS, PASS_THROUGH, Layer, as_layer, plan
from penstock.quantize.observe import runner
from penstock.quantize.opset import raised
from penstock.quantize.probes import by_channel, probe, reduced
from penstock.quantize.scheme import Scheme

Vector = NDArray[np.float64]

_SAMPLES: Final = 16
# Factors beyond this say more about a dead channel than about an outlier.
_LARGEST_FACTOR: Final = 1e3
_AVERAGES: Final = ("AveragePool", "GlobalAveragePool")
# What ends an activation function or a gate, as exporters write them.
_FLOAT_OPERATORS: Final = ("Mul", "Div", "Gelu", "HardSwish", "Swish", "Elu", "LeakyRelu", "Sigmoid", "Tanh", "Mish")


def smooth(model: ir.Model, data: Calibration, *, alpha: float = 0.5, samples: int = _SAMPLES) -> ir.Model | None:
    """Divide inputs of layers by s and multiply the weights by it, per channel s = x^alpha / w^(1 - alpha).

    x and w are the largest magnitudes of a channel, x over at most `samples` of the data. 1 / s goes into the scale and
    bias of a normalisation ahead where the layers are all that read it; else it is a Mul.
    A changed copy; None where there is nothing to smooth.
    """
    copy = raised(model)
    readers = _readers(copy)
    if not readers:
        return None
    maxima = channel_maxima(model, [value.name or "" for value in readers], data, samples=samples)
    edit = Edit(copy)
    for value, layers in readers.items():
        seen = maxima[value.name or ""]
        if not np.isfinite(seen).all():
            continue
        factors = _factors(seen, layers, alpha)
        if not np.allclose(factors, 1.0):
            _scale(edit, value, layers, factors)
    return copy if edit.changed else None


def channel_maxima(
    model: ir.Model, names: Sequence[str], data: Calibration, *, samples: int = _SAMPLES
) -> dict[str, Vector]:
    """Largest |x| of each channel of inputs of layers."""
    copy = raised(model)
    edit = Edit(copy)
    wanted = set(names)
    probes: dict[str, str] = {}
    for value, layers in _readers(copy).items():
        if value.name in wanted:
            rows = by_channel(edit, probe(edit, "Abs", [value]), *_layout(layers[0]))
            probes[value.name or ""] = reduced(edit, "ReduceMax", rows, 0).name or ""
    copy.graph.sort()
    found: dict[str, Vector] = {}
    with runner(copy, probes.values()) as run:
        for sample in data.samples[:samples]:
            answers = run(sample)
            for name, output in probes.items():
                seen = answers[output].astype(np.float64)
                found[name] = np.maximum(found[name], seen) if name in found else seen
    return found


def _readers(model: ir.Model) -> dict[ir.Value, list[Layer]]:
    """Inputs that can be smoothed, with the layers that read them."""
    found: dict[ir.Value, list[Layer]] = {}
    mixed: set[ir.Value] = set()
    scheme = Scheme()
    for layer in plan(model, scheme).layers:
        if _fits(layer, scheme):
            found.setdefault(layer.activation, []).append(layer)
        else:
            mixed.add(layer.activation)
    # Layers that see the same channels along different axes can't share factors.
    return {
        value: layers
        for value, layers in found.items()
        if value not in mixed and len({_layout(layer) for layer in layers}) == 1
    }


def _fits(layer: Layer, scheme: Scheme) -> bool:
    producer = layer.activation.producer()
    if layer.node.op_type == "Conv":
        return integer(layer.node, "group", 1) == 1 and is_operator(producer, *_FLOAT_OPERATORS)
    while producer is not None and is_operator(producer, *PASS_THROUGH, *FUSED_ACTIVATIONS, *_AVERAGES):
        before = input_of(producer, 0)
        producer = before.producer() if before is not None else None
    return producer is None or as_layer(producer, scheme) is None


def _layout(layer: Layer) -> tuple[int, int, int]:
    """Axis of the channels of a layer's input (-1: the last), its rank where that matters, and how many there are."""
    weight = constant(layer.weight)
    if weight is None:  # plan has seen that it is one: attention is off
        raise ValueError(f"{layer.node.name} has no constant weight")
    if layer.node.op_type == "Conv":
        return 1, weight.ndim, weight.shape[1]
    return -1, 0, weight.shape[1 - layer.axis]


def _factors(seen: Vector, layers: Sequence[Layer], alpha: float) -> Vector:
    weights = np.zeros_like(seen)
    for layer in layers:
        array = constant(layer.weight)
        if array is not None:
            axis = _weight_axis(layer)
            others = tuple(each for each in range(array.ndim) if each != axis)
            weights = np.maximum(weights, np.abs(array).max(axis=others))
    alive = (seen > 0) & (weights > 0)
    factors = np.ones_like(seen)
    factors[alive] = seen[alive] ** alpha / weights[alive] ** (1 - alpha)
    if alive.any():
        # Only the ratios between channels matter: what is common to all is as good in either place.
        factors[alive] /= np.exp(np.log(factors[alive]).mean())
    return np.clip(factors, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)


def _weight_axis(layer: Layer) -> int:
    """Of the weight: the input channels."""
    return 1 if layer.node.op_type == "Conv" else 1 - layer.axis


def _scale(edit: Edit, value: ir.Value, layers: Sequence[Layer], factors: Vector) -> None:
    nodes = {layer.node for layer in layers}
    alone = not edit.is_output(value) and all(use.node in nodes and use.idx == 0 for use in value.uses())
    if not (alone and _into_affine(edit, value, factors)):
        axis, rank, _ = _layout(layers[0])
        inverse = (1 / factors).astype(np.float32)
        vector = edit.constant(f"{value.name}_smoothing", inverse if axis == -1 else along(inverse, rank, axis))
        scaled = edit.insert(layers[0].node, "Mul", [value, vector], {}, [layer.node for layer in layers])
        scaled.type, scaled.shape = value.type, value.shape
        for layer in layers:
            edit.set_input(layer.node, 0, scaled)
    for layer in layers:
        weight = constant(layer.weight)
        if weight is not None:
            larger = weight * along(factors, weight.ndim, _weight_axis(layer))
            edit.set_input(layer.node, 1, edit.constant(f"{layer.node.name}_smoothed", larger.astype(np.float32)))


def _into_affine(edit: Edit, value: ir.Value, factors: Vector) -> bool:
    """Fold 1 / s into LayerNormalization, or into the Mul and Add with vectors that it was exported as."""
    node = value.producer()
    if node is None or node.graph is not edit.graph:
        return False
    if is_operator(node, "LayerNormalization") and integer(node, "axis", -1) == -1:
        return _divide(edit, node, (1, 2), factors)
    if not is_operator(node, "Add"):
        return False
    for index in (0, 1):
        scaled = node.inputs[1 - index]
        product = scaled.producer() if scaled is not None else None
        if not is_operator(product, "Mul") or product is None or edit.only_consumer(scaled) is not node:
            continue
        for side in (0, 1):
            if _is_vector(product.inputs[side], factors) and _is_vector(node.inputs[index], factors):
                return _divide(edit, product, (side,), factors) and _divide(edit, node, (index,), factors)
    return False


def _is_vector(value: ir.Value | None, factors: Vector) -> bool:
    array = constant(value)
    return array is not None and array.dtype == np.float32 and array.shape == factors.shape


def _divide(edit: Edit, node: ir.Node, indices: tuple[int, ...], factors: Vector) -> bool:
    given = [index for index in indices if input_of(node, index) is not None]
    if not all(_is_vector(node.inputs[index], factors) for index in given):
        return False
    for index in given:
        vector = constant(node.inputs[index])
        if vector is not None:
            edit.set_input(node, index, edit.constant(f"{node.name}_smoothed", (vector / factors).astype(np.float32)))
    return True
