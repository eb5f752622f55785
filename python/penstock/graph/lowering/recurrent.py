"""Layers that run along time: LSTM and GRU, one layer each, one or two directions.

Weights: [directions, gates hidden, inputs], gates in the order in which libraries for GPUs want them.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import Operand
from penstock.errors import Unsupported
from penstock.graph.editing import Array, input_of, integer, string
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.layers import in_role, name_of, origin_of, weight_of
from penstock.graph.lowering.views import identity, lies_in

_TIME_OR_BATCH_FIRST: Final = ((0, 1, 2), (1, 0, 2))
"""Orders of what a layer reads: rows of a matrix product either way."""

_LSTM: Final = (0, 2, 3, 1)  # ONNX: input, output, forget, cell; libraries: i, f, c, o
_GRU: Final = (1, 0, 2)  # ONNX: update, reset, hidden; libraries: r, z, n


def lstm(builder: Builder, node: ir.Node) -> None:
    _expect_plain(node, ("Sigmoid", "Tanh", "Tanh"))
    _lower(builder, node, "lstm", _LSTM, "ifco", ((5, "hidden"), (6, "cell")))


def gru(builder: Builder, node: ir.Node) -> None:
    """Where the reset gate is applied to what the recurrence made, as libraries do."""
    _expect_plain(node, ("Sigmoid", "Tanh"))
    if not integer(node, "linear_before_reset", 0):
        raise Unsupported(f"GRU of node {node.name!r} without linear_before_reset, which can't be lowered")
    _lower(builder, node, "gru", _GRU, "rzn", ((5, "hidden"),))


def _lower(
    builder: Builder, node: ir.Node, kind: str, order: Sequence[int], form: str, states: Sequence[tuple[int, str]]
) -> None:
    x = builder.ref(node.inputs[0])
    if not any(lies_in(x, each) for each in _TIME_OR_BATCH_FIRST):
        x = builder.stored_as(x, identity(3), node)
    r = weight_of(builder, node, 2)
    b = weight_of(builder, node, 3) if input_of(node, 3) is not None else None
    directions, _, hidden = r.shape
    time, batch = x.shape[0], x.shape[1]
    datatype = builder.datatype(node.outputs[0]) if node.outputs[0].dtype else x.datatype

    def weight(index: int, role: str) -> Operand:
        gates = _gates(weight_of(builder, node, index), order)
        return in_role(role, builder.formed(origin_of(builder, node, index), form, gates, name_of(node, index)))

    operands = [builder.operand(x, "x"), weight(1, "weight"), weight(2, "recurrence")]
    if b is not None:
        half, name = len(order) * hidden, name_of(node, 3)
        operands += [
            in_role("bias", builder.formed(b, form, _gates(b[:, :half], order), name)),
            in_role("recurrence_bias", builder.formed(b, f"{form}.recurrence", _gates(b[:, half:], order), name)),
        ]
    for index, role in states:
        value = input_of(node, index)
        array = builder.constant(value)
        if value is not None and (array is None or np.any(array)):
            operands.append(builder.operand(builder.stored_as(builder.ref(value), identity(3), node), role))
    names = [value.name or f"{node.name}.{index}" for index, value in enumerate(node.outputs)]
    names += [f"{node.name}.{index}" for index in range(len(names), 1 + len(states))]
    shape = (time, directions, batch, hidden)
    y = builder.value(names[0] or f"{node.name}.y", shape, datatype, (0, 2, 1, 3))
    last = [
        builder.value(name or f"{node.name}.state", (directions, batch, hidden), datatype, identity(3))
        for name in names[1:]
    ]
    builder.append(node, kind, operands, [y.value, *(state.value for state in last)], {"hidden": hidden})
    for value, ref in zip(node.outputs, (y, *last), strict=False):
        builder.forward(value, ref)


def _gates(array: Array, order: Sequence[int]) -> Array:
    return np.concatenate([np.split(array, len(order), axis=1)[gate] for gate in order], axis=1)


def _expect_plain(node: ir.Node, usual: tuple[str, ...]) -> None:
    direction = string(node, "direction", "forward")
    odd = [name for name in ("activations", "activation_alpha", "activation_beta", "clip") if name in node.attributes]
    if "activations" in odd and tuple(node.attributes["activations"].as_strings()) in (usual, usual * 2):
        odd.remove("activations")
    odd += [f"direction {direction}"] if direction == "reverse" else []
    odd += [name for name in ("input_forget", "layout") if integer(node, name, 0)]
    odd += [name for index, name in ((4, "sequence_lens"), (7, "peepholes")) if input_of(node, index) is not None]
    if odd:
        raise Unsupported(f"{node.op_type} of node {node.name!r} uses {', '.join(odd)}, which can't be lowered")
