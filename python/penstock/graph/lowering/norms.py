"""Layer norms that nothing but matrix products read become part of these: no normalised row is ever written.

    norm(s) w^T + b  =  ((s - mean) / deviation) (g w)^T + (w h + b)

with the norm's weight g and bias h inside the product's; what is left of the norm is two numbers a row, which whoever
makes s writes beside it. Where norm(s) is also added behind a product (BERT normalises after the addition) its rows are
normalised there. So a transformer's block is four products and one attention.

That pays where a launch costs what its arithmetic does. Of many rows a norm is a small part of its products, which
libraries then make faster than kernels that know of norms (`sums` is for those). Called by `lower`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from penstock.engine.lowered import Attribute, LoweredGraph, Operand, Step, Value, Weight, contiguous
from penstock.graph.editing import Array
from penstock.graph.lowering.builder import numpy_datatype

_PRODUCTS: Final = ("gemm", "gemm_norm")
MOST_ROWS: Final = 256
"""Measured on an H200, whole models: of 128 rows folding takes 13 % off, of 3200 it adds 5 %."""

_PART: Final = 32
"""Columns of a row whose moments are told together: what the narrowest of blocks hold, which few rows need most."""


@dataclass(frozen=True, slots=True)
class _Norm:
    step: Step
    scale: Array
    shift: Array

    @property
    def x(self) -> str:
        return self.step.inputs[0].value

    @property
    def epsilon(self) -> Attribute:
        return self.step.attributes["epsilon"]


def fold_norms(graph: LoweredGraph, weights: Mapping[str, Array]) -> tuple[LoweredGraph, dict[str, Array]]:
    """The graph without such norms, and all weights."""
    folding = _Folding(graph, dict(weights))
    for number, step in enumerate(graph.steps):
        if step.kind == "layer_norm":
            folding.fold(number)
    return folding.result()


class _Folding:
    def __init__(self, graph: LoweredGraph, weights: dict[str, Array]) -> None:
        self._graph = graph
        self._weights = weights
        self._values = dict(graph.values)
        self._steps: list[Step | None] = list(graph.steps)
        self._makers = {name: number for number, step in enumerate(graph.steps) for name in step.outputs}
        self._readers = graph.readers()
        self._kept = {output.value for output in graph.outputs}

    def fold(self, number: int) -> None:
        norm = self._norm(number)
        if norm is None:
            return
        maker, readers = self._makers[norm.x], self._readers.get(norm.step.outputs[0], ())
        changed = {at: self._reading(self._steps[at], norm) for at in readers}
        if not readers or None in changed.values():
            return
        self._steps[maker] = self._telling(maker)
        for at, step in changed.items():
            self._steps[at] = step
        self._steps[number] = None

    def _norm(self, number: int) -> _Norm | None:
        """Over the whole row of what a product makes."""
        step = self._steps[number]
        assert step is not None
        x = step.inputs[0]
        maker = self._makers.get(x.value)
        made = self._steps[maker] if maker is not None else None
        if made is None or made.kind not in _PRODUCTS or x.view is not None or step.attributes["axes"] != 1:
            return None
        (*before, size) = self._graph.values[x.value].shape
        if step.outputs[0] in self._kept or size % _PART or math.prod(before) > MOST_ROWS:
            return None
        found = []
        for role, empty in (("weight", 1.0), ("bias", 0.0)):
            operand = step.operand(role)
            array = self._weights[operand.value] if operand is not None else np.full(size, empty, np.float32)
            if operand is not None and (operand.view is not None or array.shape != (size,)):
                return None
            found.append(array)
        return _Norm(step, *found)

    def _reading(self, step: Step | None, norm: _Norm) -> Step | None:
        """The product with the norm's input in place of its output; None where that can't be."""
        if step is None or step.kind not in _PRODUCTS:
            return None
        out, moments = norm.step.outputs[0], f"{norm.x}.moments"
        inputs: list[Operand] = []
        attributes = dict(step.attributes)
        for operand in step.inputs:
            if operand.value != out:
                inputs.append(operand)
            elif not self._as_it_lies(operand, out):
                return None
            elif operand.role == "x":
                inputs.append(replace(operand, value=norm.x))
                attributes["epsilon"] = norm.epsilon
            elif operand.role == "residual":
                names = [
                    self._named(step, role, array) for role, array in (("scale", norm.scale), ("shift", norm.shift))
                ]
                inputs += [replace(operand, value=norm.x), Operand(moments, "residual_moments")]
                inputs += [Operand(names[0], "residual_scale"), Operand(names[1], "residual_shift")]
                attributes["residual_epsilon"] = norm.epsilon
            else:
                return None
        if step.inputs[0].value == out:
            folded = self._folded(step, norm)
            if folded is None:
                return None
            inputs = [each for each in inputs if each.role not in ("weight", "bias")]
            inputs[1:1] = [
                Operand(folded[0], "weight"),
                Operand(folded[1], "bias"),
                Operand(moments, "x_moments"),
                Operand(folded[0], "column_sums"),
            ]
        nodes = tuple(dict.fromkeys((*norm.step.nodes, *step.nodes)))
        return replace(step, kind="gemm_norm", inputs=tuple(inputs), attributes=attributes, nodes=nodes)

    def _as_it_lies(self, operand: Operand, value: str) -> bool:
        """Rows as they are, whatever the axes before them."""
        shape, view = self._graph.values[value].shape, operand.view
        if view is None:
            return True
        whole = view.offset == 0 and math.prod(view.shape) == math.prod(shape) and view.shape[-1] == shape[-1]
        return whole and view.strides == contiguous(view.shape)

    def _folded(self, step: Step, norm: _Norm) -> tuple[str, str] | None:
        """The product's weight and bias with the norm's inside."""
        weight, bias = step.operand("weight"), step.operand("bias")
        if weight is None or weight.view is not None or (bias is not None and bias.view is not None):
            return None
        matrix = self._weights[weight.value]
        wide = matrix.astype(np.float32)
        shifted = wide @ norm.shift.astype(np.float32)
        if bias is not None:
            shifted = shifted + self._weights[bias.value].astype(np.float32).reshape(-1)
        scaled = (wide * norm.scale.astype(np.float32)).astype(matrix.dtype)
        return self._named(step, "weight", scaled), self._named(step, "bias", shifted)

    def _named(self, step: Step, what: str, array: Array) -> str:
        name = f"{step.outputs[0]}.{what}"
        while name in self._weights or name in self._values:
            name += ".normed"
        self._weights[name] = array
        return name

    def _telling(self, number: int) -> Step:
        """The product that writes what is to be known of its rows."""
        step = self._steps[number]
        assert step is not None
        (out, *more) = step.outputs
        if more:
            return step
        shape = self._graph.values[out].shape
        moments = f"{out}.moments"
        self._values[moments] = Value((math.prod(shape[:-1]), shape[-1] // _PART, 2), "FP32")
        return replace(step, kind="gemm_norm", outputs=(out, moments))

    def result(self) -> tuple[LoweredGraph, dict[str, Array]]:
        steps = tuple(step for step in self._steps if step is not None)
        read = {operand.value for step in steps for operand in step.inputs} | self._kept
        made = {name for step in steps for name in step.outputs} | {each.name for each in self._graph.inputs}
        weights = {name: array for name, array in self._weights.items() if name in read}
        graph = replace(
            self._graph,
            steps=steps,
            values={name: value for name, value in self._values.items() if name in made},
            weights={name: Weight(tuple(array.shape), numpy_datatype(array)) for name, array in weights.items()},
        )
        return graph, weights
