"""Hard swish (Howard et al. 2019, "Searching for MobileNetV3", section 5.2): x * clip(x + 3, 0, 6) / 6.

Written out like that, in any order, or as x * HardSigmoid(x) with alpha 1/6 and beta 1/2, it becomes HardSwish (opset
14). HardSigmoid with another slope (Paddle's default is 0.2) makes no hard swish and stays. Where the model can't be
raised the nodes are named `hard_swish`.
"""

from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Edit, number, producer
from penstock.graph.patterns.hard_sigmoid import SIXTH, TYPES, relu6_of_shifted
from penstock.graph.patterns.matching import product, same
from penstock.graph.patterns.pattern import Match, Operator, Pattern


def find(edit: Edit, root: ir.Node) -> Match | None:
    whole = product(edit, root.outputs[0])
    if whole is None:
        return None
    dtype = root.outputs[0].dtype
    for x, gate in whole.orders(2):
        nodes: tuple[ir.Node, ...] = ()
        hard, relu6 = producer(gate, "HardSigmoid"), relu6_of_shifted(gate)
        if hard is not None and hard.inputs[0] is x and whole.coefficient == 1.0 and _slope_is_a_sixth(hard):
            nodes = (hard,)
        elif relu6 is not None and relu6[0] is x and same(whole.coefficient, SIXTH, dtype):
            nodes = relu6[1]
        if nodes and x.dtype in TYPES:
            return Match("hard_swish", frozenset((*whole.nodes, *nodes)), Operator("HardSwish", 14, (x,)))
    return None


def _slope_is_a_sixth(node: ir.Node) -> bool:
    # Attributes are FP32 whatever the tensors are.
    alpha, beta = number(node, "alpha", 0.2), number(node, "beta", 0.5)
    return same(alpha, SIXTH, ir.DataType.FLOAT) and beta == 0.5


HARD_SWISH: Final = Pattern("hard_swish", ("Mul", "Div"), find)
