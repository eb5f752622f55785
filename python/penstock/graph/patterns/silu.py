"""SiLU, x * sigmoid(x) (Elfwing et al. 2017; also "swish"), and CLIP's quick GELU, x * sigmoid(1.702 * x).

Named only: Swish is an operator from opset 24 on, which CPU libraries do not run yet, and all of them fuse the two
nodes by themselves.
"""

from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Edit, input_of, producer
from penstock.graph.patterns.matching import product, same
from penstock.graph.patterns.pattern import Match, Pattern

_QUICK_GELU: Final = 1.702  # Hendrycks and Gimpel 2016, section 2


def find(edit: Edit, root: ir.Node) -> Match | None:
    whole = product(edit, root.outputs[0])
    if whole is None or whole.coefficient != 1.0:
        return None
    for x, gate in whole.orders(2):
        sigmoid = producer(gate, "Sigmoid")
        if sigmoid is None:
            continue
        if sigmoid.inputs[0] is x:
            return Match("silu", frozenset((*whole.nodes, sigmoid)))
        scaled = product(edit, input_of(sigmoid, 0))
        if scaled is not None and scaled.is_power(x, 1) and same(scaled.coefficient, _QUICK_GELU, x.dtype):
            return Match("quick_gelu", frozenset((*whole.nodes, sigmoid, *scaled.nodes)))
    return None


SILU: Final = Pattern("silu", ("Mul",), find)
