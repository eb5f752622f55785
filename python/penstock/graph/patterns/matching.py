"""What recognisers ask of a graph: a constant number, a product taken apart, a subgraph that keeps to itself.

Nothing here changes a graph. Constants may be initialisers or Constant nodes; an operand may stand on either side of an
operator that commutes. Called by the pattern files and by regions.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Array, Edit, input_of, integer, integers, producer, rank

# Half a unit in the last place is what writing a number in a type may change; exporters that compute a constant in
# that type (1/6, sqrt(2/pi)) are off by two or three. The nearest number that means something else is thousands away.
_UNITS: Final = 4
_EPSILON: Final = {
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
    ir.DataType.FLOAT: 2.0**-23,
    ir.DataType.DOUBLE: 2.0**-52,
}
# A product of more factors, or in more steps, than this is no activation function.
_FACTORS: Final = 8


def constant_of(value: ir.Value | None) -> Array | None:
    """What an initialiser or a Constant node holds; None for everything that may change from call to call."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return None if value.const_value is None else value.const_value.numpy()
    node = producer(value, "Constant")
    if node is None or len(node.attributes) != 1:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None, beside: ir.Value | None = None) -> float | None:
    """The number in a constant of one element that leaves the shape of its other operand `beside` as it is."""
    if value is None or (value.shape is not None and any(size != 1 for size in value.shape)):
        return None  # without reading a weight
    array = constant_of(value)
    if array is None or array.size != 1:
        return None
    known = rank(beside)
    if array.ndim > (0 if known is None else known) and beside is not None:
        return None
    try:
        return float(array.reshape(-1)[0])
    except (TypeError, ValueError):  # a string
        return None


def same(found: float | None, expected: float, dtype: ir.DataType | None) -> bool:
    """Whether a number written in this type can only mean `expected`."""
    epsilon = _EPSILON.get(dtype, 0.0) if dtype is not None else 0.0
    return found is not None and abs(found - expected) <= _UNITS * epsilon * abs(expected)


def operands(node: ir.Node | None) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Both orders of the two inputs of an operator that commutes."""
    if node is not None and len(node.inputs) == 2:
        first, second = node.inputs
        if first is not None and second is not None:
            yield first, second
            yield second, first


def plus(value: ir.Value | None) -> Iterator[tuple[ir.Value, float, ir.Node]]:
    """For an Add of something and a number: the something, the number, the node."""
    node = producer(value, "Add")
    for other, number in operands(node):
        found = scalar(number, other)
        if node is not None and found is not None:
            yield other, found, node


@dataclass(frozen=True, slots=True)
class Product:
    """A tree of Mul, Div by a number and Pow by a small whole number, multiplied out."""

    coefficient: float
    factors: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]

    def orders(self, count: int) -> Iterator[tuple[ir.Value, ...]]:
        """The factors in every order when there are `count` of them."""
        if len(self.factors) == count:
            yield from permutations(self.factors)

    def is_power(self, value: ir.Value, exponent: int) -> bool:
        """Whether the factors are this value, so many times."""
        return len(self.factors) == exponent and all(factor is value for factor in self.factors)


def product(edit: Edit, value: ir.Value | None) -> Product | None:
    """Multiply out what makes a value, down to values that are read elsewhere, too; None where no product makes it.

    Multiplication commutes and associates but for rounding, which is why the order in which an exporter wrote it says
    nothing.
    """
    if value is None:
        return None
    coefficient, factors, nodes = 1.0, [], []
    pending = [value]
    while pending:
        current = pending.pop()
        inner = current is value or edit.only_consumer(current) is not None
        node = producer(current, "Mul", "Div", "Pow") if inner else None
        step = _factor(node) if node is not None else None
        if node is None or step is None:
            factors.append(current)
        else:
            nodes.append(node)
            coefficient *= step[0]
            pending += step[1]
        if max(len(factors) + len(pending), len(nodes)) > _FACTORS:
            return None
    return Product(coefficient, tuple(factors), tuple(nodes)) if nodes else None


def _factor(node: ir.Node) -> tuple[float, tuple[ir.Value, ...]] | None:
    """One step: a number and the values it is multiplied with."""
    left, right = input_of(node, 0), input_of(node, 1)
    if left is None or right is None:
        return None
    number = scalar(right, left)
    if node.op_type == "Pow":
        return (1.0, (left,) * int(number)) if number in (2.0, 3.0) else None
    if node.op_type == "Div":
        return (1.0 / number, (left,)) if number else None
    if number is not None:
        return number, (left,)
    number = scalar(left, right)
    return (number, (right,)) if number is not None else (1.0, (left, right))


def reduced_axes(node: ir.Node) -> tuple[int, ...] | None:
    """Axes of a reduction, as an attribute (before opset 18) or an input, sorted; negative ones where rank is unknown.

    None where it does not keep the dimensions, or the axes are not known.
    """
    if integer(node, "keepdims", 1) != 1:
        return None
    axes = integers(node, "axes")
    if axes is None:
        array = constant_of(input_of(node, 1))
        axes = None if array is None else tuple(int(axis) for axis in array.reshape(-1))
    known = rank(input_of(node, 0))
    if not axes:
        return None
    if known is not None:
        axes = tuple(axis - known if axis >= 0 else axis for axis in axes)
    return tuple(sorted(set(axes))) if len({axis < 0 for axis in axes}) == 1 else None


def keeps_to_itself(edit: Edit, nodes: Collection[ir.Node], last: ir.Node) -> bool:
    """Whether nothing outside reads what these nodes compute, but for the outputs of the last one."""
    return all(
        not edit.is_output(value) and all(use.node in nodes for use in value.uses())
        for node in nodes
        if node is not last
        for value in node.outputs
    )


def cone(members: Collection[ir.Node], order: Callable[[ir.Node], int]) -> tuple[ir.Node, ...]:
    """The largest part of `members` that has one way out: the last of them, and all that only it needs."""
    if not members:
        return ()
    ordered = sorted(members, key=order, reverse=True)
    kept = {ordered[0]}
    for node in ordered[1:]:
        uses = [use.node for value in node.outputs for use in value.uses()]
        private = not any(value.is_graph_output() for value in node.outputs)
        if private and uses and all(user in kept for user in uses):
            kept.add(node)
    return tuple(node for node in reversed(ordered) if node in kept)


def data_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs that are not constants."""
    for value in node.inputs:
        if value is None:
            continue
        constant = value.is_initializer() and not value.is_graph_input()
        if not constant and producer(value, "Constant") is None:
            yield value


def words(text: str) -> frozenset[str]:
    """A table of operators."""
    return frozenset(text.split())
