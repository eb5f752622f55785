"""What is done to each number of a map alone, and so may be done before the numbers are moved as well as after."""

from collections.abc import Iterable
from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Edit, constant, is_operator

# Of one number each; further inputs are bounds.
_ALONE: Final = ("Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "LeakyRelu", "Elu", "Clip", "Softplus")


def followers(edit: Edit, node: ir.Node) -> list[ir.Node]:
    """The nodes that one after the other change each number of what `node` makes, and that alone read it."""
    chain: list[ir.Node] = []
    last = node
    while (reader := edit.only_consumer(last.outputs[0])) is not None and _alone(reader, last.outputs[0]):
        chain.append(reader)
        last = reader
    return chain


def again(edit: Edit, before: ir.Node, value: ir.Value, chain: Iterable[ir.Node]) -> ir.Value:
    """The same nodes anew, over a value whose type and shape are known."""
    for each in chain:
        attributes = {name: attribute.value for name, attribute in each.attributes.items()}
        like, value = value, edit.insert(before, each.op_type, [value, *each.inputs[1:]], attributes, [each])
        value.type, value.shape = like.type, None if like.shape is None else ir.Shape(list(like.shape))
    return value


def describe(value: ir.Value, like: ir.Value, channels: int) -> None:
    """The type of a layer's input, and its shape with other channels."""
    value.type = like.type
    if like.shape is not None:
        value.shape = ir.Shape([like.shape[0], channels, *list(like.shape)[2:]])


def _alone(node: ir.Node, value: ir.Value) -> bool:
    bounds = [each for each in node.inputs[1:] if each is not None]
    return is_operator(node, *_ALONE) and node.inputs[0] is value and all(constant(each) is not None for each in bounds)
