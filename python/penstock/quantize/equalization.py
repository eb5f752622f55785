"""Neighbouring convolutions share the spread of their weights, so that no channel is squeezed into a few steps.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1. The
model computes what it did, up to rounding. Called by recipe.
"""

from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock.graph.editing import Edit, constant, input_of, integer, is_operator

Floats = NDArray[np.float64]

# Chains of convolutions settle after a few rounds, as in the paper.
_ROUNDS: Final = 4
# Factors beyond this say more about a dead channel than about its neighbours.
_LARGEST_FACTOR: Final = 1e3


def equalize(model: ir.Model) -> ir.Model | None:
    """Scale the channels between two convolutions (or Conv, Relu, Conv) so that both have the same weight ranges.

    A changed copy; None where there is no such pair.
    """
    copy = model.clone()
    edit = Edit(copy)
    pairs = [(node, second) for node in edit.nodes("Conv") if (second := _partner(edit, node)) is not None]
    if not pairs:
        return None
    nodes = list(dict.fromkeys(node for pair in pairs for node in pair))
    weights = {node: _floats(node, 1) for node in nodes}
    biases = {node: _floats(node, 2) for node in nodes if input_of(node, 2) is not None}
    for _ in range(_ROUNDS):
        for first, second in pairs:
            _balance(weights, biases, first, second)
    for node in nodes:
        edit.set_input(node, 1, edit.constant(f"{node.name}_equalized", weights[node].astype(np.float32)))
        if node in biases:
            edit.set_input(node, 2, edit.constant(f"{node.name}_bias_equalized", biases[node].astype(np.float32)))
    return copy


def _partner(edit: Edit, node: ir.Node) -> ir.Node | None:
    """The convolution that alone reads what this one answers; a Relu between changes nothing, since s > 0."""
    following = edit.only_consumer(node.outputs[0])
    if is_operator(following, "Relu") and following is not None:
        following = edit.only_consumer(following.outputs[0])
    if following is None or not is_operator(following, "Conv"):
        return None
    for each in (node, following):
        weight, bias = constant(each.inputs[1]), input_of(each, 2)
        if weight is None or weight.dtype != np.float32 or (bias is not None and constant(bias) is None):
            return None
    weight = constant(following.inputs[1])
    group = integer(following, "group", 1)
    return following if group == 1 or (weight is not None and weight.shape[1] == 1 and group == len(weight)) else None


def _floats(node: ir.Node, index: int) -> Floats:
    array = constant(node.inputs[index])
    if array is None:  # _partner has seen that it is one
        raise ValueError(f"input {index} of {node.name} is no constant")
    return array.astype(np.float64)


def _balance(weights: dict[ir.Node, Floats], biases: dict[ir.Node, Floats], first: ir.Node, second: ir.Node) -> None:
    """Equation 11: s = sqrt(range of the channel in the first / its range in the second)."""
    axis = 0 if integer(second, "group", 1) > 1 else 1
    out = _largest(weights[first], 0)
    into = _largest(weights[second], axis)
    alive = (out > 0) & (into > 0)
    factors = np.sqrt(np.divide(out, into, out=np.ones_like(out), where=alive))
    factors = np.where(alive, np.clip(factors, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR), 1.0)
    weights[first] = weights[first] / along(factors, weights[first].ndim, 0)
    if first in biases:
        biases[first] = biases[first] / factors
    weights[second] = weights[second] * along(factors, weights[second].ndim, axis)


def _largest(weight: Floats, axis: int) -> Floats:
    found: Floats = np.abs(weight).max(axis=tuple(each for each in range(weight.ndim) if each != axis))
    return found


def along(vector: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
    """A vector that broadcasts along one axis of an array of this rank."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
