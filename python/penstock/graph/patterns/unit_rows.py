"""Rows divided by their own length: x / max(||x||, epsilon) over the last axis, as exporters write F.normalize.

ReduceL2, a Clip or Max from below, maybe an Expand, and the Div. Called by what knows cosine attention.
"""

from dataclasses import dataclass

import onnx_ir as ir

from penstock.graph.editing import input_of, producer, static_shape
from penstock.graph.patterns.matching import reduced_axes, scalar


@dataclass(frozen=True, slots=True)
class UnitRows:
    x: ir.Value
    epsilon: float
    nodes: tuple[ir.Node, ...]
    """From the norm to the quotient, which nothing but they read before its end."""


def unit_rows(value: ir.Value | None) -> UnitRows | None:
    """What makes this value, where it is that."""
    quotient = producer(value, "Div")
    if quotient is None:
        return None
    x, below = quotient.inputs
    nodes = [quotient]
    if (repeated := producer(below, "Expand")) is not None:
        nodes.append(repeated)
        below = repeated.inputs[0]
    bounded = producer(below, "Clip", "Max")
    norm = producer(input_of(bounded, 0), "ReduceL2") if bounded is not None else None
    if bounded is None or norm is None or x is None or norm.inputs[0] is not x or reduced_axes(norm) != (-1,):
        return None
    nodes += [bounded, norm]
    epsilon = scalar(input_of(bounded, 1), norm.outputs[0])
    capped = bounded.op_type == "Clip" and input_of(bounded, 2) is not None
    if epsilon is None or capped or len(bounded.inputs) > 3 or (bounded.op_type == "Max" and len(bounded.inputs) != 2):
        return None
    shape = static_shape(x)
    if shape is None or static_shape(quotient.outputs[0]) != shape:
        return None
    if any(len(node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output() for node in nodes[1:]):
        return None
    return UnitRows(x, epsilon, tuple(reversed(nodes)))
