"""Sixteen bits with a few layers in FP32: which layers can stay wide, marking them, and a search for how many must.

What BF16 takes away from a layer's inputs passes through every layer behind it, so the front of a network costs most of
the accuracy: of 54 layers of a ResNet-50 the first alone makes half of the error of all, the last ten next to nothing.
Neighbours in one type need no conversion between them, either. So what is looked for is a run of layers, from the front
where that will do: its end first, by doubling and halving, then its beginning.

A marked form is ordinary ONNX: the mark is metadata of nodes (`plan.WIDE_KEY`), which runtimes read. Called by build.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import onnx_ir as ir

from penstock.engine.plan import ROUNDED_KEY, WIDE_KEY
from penstock.graph.editing import Edit, constant, is_operator
from penstock.graph.passes.dead import remove_dead
from penstock.quantize.moments import Floats
from penstock.quantize.sensitivity import Evaluate, Kept

# What libraries compute in a convolution's kernel, and which has to be of the same type as it.
_IN_KERNEL: Final = (
    *("Add", "Sub", "Mul", "Div", "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish"),
    *("Tanh", "Gelu", "Mish", "Swish"),
)
# What has a type of its own, whatever stands around it.
_LAYERS: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN")
# The first try is this share of the layers, and what is added or taken away at the end one in so many of those found.
_FIRST_SHARE: Final = 1 / 16
_STEP_SHARE: Final = 8
_AS_THEY_ARE: Final[Mapping[str, Floats]] = MappingProxyType({})


def convolutions(model: ir.Model) -> tuple[str, ...]:
    """Names of the layers that can be kept in FP32, in the order of execution."""
    return tuple(node.name for node in model.graph if is_operator(node, "Conv") and node.name)


def keeping(model: ir.Model, names: Collection[str], weights: Mapping[str, Floats] = _AS_THEY_ARE) -> ir.Model:
    """A copy in which these convolutions are marked, and what lies between them or is computed in their kernels.

    weights  by name of the layer: what layers that are not marked have in place of their own.
    """
    wanted = frozenset(names)
    copy = model.clone()
    _give(copy, {name: weight for name, weight in weights.items() if name not in wanted})
    kept: set[ir.Node | None] = {node for node in copy.graph if is_operator(node, "Conv") and node.name in wanted}
    if not kept:
        return copy
    light = [node for node in copy.graph if not is_operator(node, *_LAYERS)]
    before: set[ir.Node] = set()  # any layer
    for node in light:
        values = [value for value in node.inputs if value is not None and constant(value) is None]
        made_by = {value.producer() for value in values}
        if made_by <= {None, *before}:
            before.add(node)
        in_kernel = is_operator(node, *_IN_KERNEL) and any(each in kept and _feeds(each, node) for each in made_by)
        if in_kernel or (made_by and made_by <= kept):
            kept.add(node)
    # A mean is not to be taken off in sixteen bits before the first layer.
    for node in reversed([each for each in light if each in before]):
        readers = {use.node for value in node.outputs for use in value.uses()}
        if readers and readers <= kept:
            kept.add(node)
    for node in copy.graph:
        if node in kept:
            node.metadata_props[WIDE_KEY] = "fp32"
    return copy


def _give(model: ir.Model, weights: Mapping[str, Floats]) -> None:
    edit = Edit(model)
    for node in model.graph:
        weight = weights.get(node.name or "")
        if weight is not None:  # layers may share one, and each rounds it for what it reads itself
            edit.set_input(node, 1, edit.constant(f"{node.name}_weight", weight))
            node.metadata_props[ROUNDED_KEY] = "bf16"
    remove_dead(edit)


def _feeds(node: ir.Node | None, reader: ir.Node) -> bool:
    """Whether nothing else reads what a node computes."""
    return node is not None and [use.node for use in node.outputs[0].uses()] == [reader]


def search_run(
    layers: Sequence[str],
    evaluate: Evaluate,
    passes: Callable[[float], bool],
    *,
    budget_seconds: float,
    first_share: float = _FIRST_SHARE,
) -> Kept:
    """Find a short run of `layers` which, kept in FP32, lets the model pass.

    layers       in the order of execution
    evaluate     scores the model with these layers kept; higher is better. Never asked twice the same
    passes       whether a score will do
    first_share  of the layers: how many are tried first

    The budget is checked before each evaluation but the first, with the longest so far as an estimate.
    """
    return _Run(layers, evaluate, passes, budget_seconds, first_share).search()


class _Run:
    def __init__(
        self,
        layers: Sequence[str],
        evaluate: Evaluate,
        passes: Callable[[float], bool],
        budget_seconds: float,
        first_share: float,
    ) -> None:
        self.first_share = first_share
        self.layers = list(layers)
        self.evaluate = evaluate
        self.passes = passes
        self.deadline = time.monotonic() + budget_seconds
        self.longest = 0.0
        self.scores: dict[tuple[int, int], float] = {}

    def search(self) -> Kept:
        count = len(self.layers)
        end = max(1, int(count * self.first_share))
        if not count:
            return Kept(frozenset(), -math.inf, False, 0, True)
        too_few = 0
        while not self.good(0, end):
            if end == count or self.over():
                return self.kept(0, end, complete=end == count)
            too_few, end = end, min(2 * end, count)
        while end - too_few > self.step(end) and not self.over():
            middle = (too_few + end) // 2
            if self.good(0, middle):
                end = middle
            else:
                too_few = middle
        begin, too_late = 0, end
        while too_late - begin > self.step(end) and not self.over():
            middle = (begin + too_late + 1) // 2
            if middle < end and self.good(middle, end):
                begin = middle
            else:
                too_late = middle
        return self.kept(begin, end, complete=not self.over())

    def step(self, size: int) -> int:
        """A difference that is not worth another evaluation."""
        return max(1, size // _STEP_SHARE)

    def good(self, begin: int, end: int) -> bool:
        if (begin, end) not in self.scores:
            began = time.monotonic()
            found = self.evaluate(frozenset(self.layers[begin:end]))
            self.scores[begin, end] = -math.inf if math.isnan(found) else found
            self.longest = max(self.longest, time.monotonic() - began)
        return self.passes(self.scores[begin, end])

    def over(self) -> bool:
        """Whether another evaluation would not end within the budget."""
        return time.monotonic() + self.longest > self.deadline

    def kept(self, begin: int, end: int, *, complete: bool) -> Kept:
        score = self.scores[begin, end]
        layers = frozenset(self.layers[begin:end])
        return Kept(layers, score, self.passes(score), len(self.scores), complete)
