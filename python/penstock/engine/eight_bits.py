"""A lowered graph of floats with its layers in eight bits: INT8, or e4m3.

`in_eight_bits` takes what one step of each value and of each channel of a weight is worth, and answers another graph
and its weights. A layer whose input and weight are both known multiplies eight bits; a value is stored in eight bits
where all who read it can, else a step of its own makes the copy that layers read. Layers of residual blocks, and a stem
and its pool, become one step then. Everything is decided by names and shapes; numbers are touched only where weights
are rounded. Called by `graph.eight_bits` and by benches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from penstock.engine.blocks import join_blocks_of_integers
from penstock.engine.expansions import join_expansions_of_integers
from penstock.engine.lowered import FLOATS, Instruction, LoweredGraph, Operand, Step, Value, Weight
from penstock.engine.stem_pools import join_stem_pools
from penstock.errors import InvalidArgument

Rounded = Callable[[Any, Any, str], Any]
"""A weight, what a step of each of its rows is worth, the type: the weight in eight bits."""

TOP: Final[Mapping[str, float]] = {"INT8": 127.0, "FP8": 448.0}
"""The largest number of each type; INT8 is symmetric."""

LEAST_SCALE: Final = 2.0**-100

_LAYERS: Final = ("conv", "gemm")
# The least that a product is over: below, the pieces that tensor cores take are mostly padding.
_LEAST_DEPTH: Final = 16
_FEWEST_CHANNELS: Final = 8
_CUT: Final = 6  # axes: of pictures, patches, planes and a patch
# Whose kernels write eight bits; pools over windows move them only.
_WRITERS: Final = ("conv", "gemm", "reduce", "layer_norm", "attention")


@dataclass(frozen=True, slots=True)
class Grids:
    """What one step is worth."""

    values: Mapping[str, float]
    weights: Mapping[str, Any]
    """Weight -> FP32 [out]: of each output channel. Layers whose weight is not here stay as they are."""


def in_eight_bits(
    graph: LoweredGraph,
    weights: Mapping[str, Any],
    grids: Grids,
    datatype: str = "INT8",
    rounded: Rounded | None = None,
) -> tuple[LoweredGraph, dict[str, Any]]:
    """The graph and all its weights. Layers that can't be in eight bits stay what they are.

    rounded  for weights that are no NumPy arrays
    """
    if datatype not in TOP:
        raise InvalidArgument(f"layers can't multiply {datatype}, expected one of {', '.join(TOP)}")
    found, made = _Narrowing(graph, grids, datatype).result(weights, rounded or rounded_array)
    if datatype == "INT8":
        found = join_expansions_of_integers(join_stem_pools(join_blocks_of_integers(found)))
    return found, made


def rounded_array(weight: Any, scales: Any, datatype: str) -> Any:
    """To the nearest, rows along the first axis."""
    steps = np.asarray(scales, np.float64).reshape(-1, *(1,) * (weight.ndim - 1))
    exact = np.clip(np.asarray(weight, np.float64) / steps, -TOP[datatype], TOP[datatype])
    if datatype == "INT8":
        return np.rint(exact).astype(np.int8)
    import ml_dtypes

    return exact.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)


class _Narrowing:
    def __init__(self, graph: LoweredGraph, grids: Grids, datatype: str) -> None:
        self._graph, self._datatype = graph, datatype
        self._scales = dict(grids.values)
        self._weights = grids.weights
        self._makers = {name: step for step in graph.steps for name in step.outputs}
        self._readers = graph.readers()
        self._ends = {each.name for each in graph.inputs} | {each.value for each in graph.outputs}
        self._through_moves()
        self._through_pools()
        self._takers = {step.name for step in graph.steps if self._takes(step)}
        self._stored = self._settled()

    def _through_moves(self) -> None:
        """What is only moved, or has zeros put around it, is worth what it was."""
        for step in self._graph.steps:
            moves = step.kind == "copy" or (step.kind == "pad" and step.attributes.get("value") == 0.0)
            if moves and step.inputs[0].value in self._scales:
                self._scales.setdefault(step.outputs[0], self._scales[step.inputs[0].value])

    def _through_pools(self) -> None:
        """The largest of numbers on a grid lies on it: what a max pool reads and writes has one scale."""
        for step in reversed(self._graph.steps):
            if step.kind == "max_pool" and step.outputs[0] in self._scales:
                self._scales.setdefault(step.inputs[0].value, self._scales[step.outputs[0]])

    def _takes(self, step: Step) -> bool:
        """Whether a layer is to multiply eight bits."""
        x, weight = step.operand("x"), step.operand("weight")
        if step.kind not in _LAYERS or x is None or weight is None or step.operand("scale") is not None:
            return False
        value = self._graph.values.get(x.value)
        if value is None or value.datatype not in FLOATS or weight.view is not None:
            return False
        if x.value not in self._scales or weight.value not in self._weights:
            return False
        shape = self._graph.weights[weight.value].shape
        depth = 1
        for size in shape[1:]:
            depth *= size
        if "products" in step.attributes and self._datatype != "INT8":
            return False  # of a picture, whose numbers are all of one size
        if self._is_cut(x.value):
            return False  # nobody who cuts a picture into patches writes eight bits
        many = shape[-1] >= _FEWEST_CHANNELS and depth >= _LEAST_DEPTH
        return many and step.attributes.get("groups", 1) == 1

    def _is_cut(self, name: str) -> bool:
        """Patches of a picture."""
        maker = self._makers.get(name)
        view = maker.inputs[0].view if maker is not None and maker.kind == "copy" else None
        return view is not None and len(view.shape) == _CUT

    # ---- which values are stored in eight bits ----

    def _settled(self) -> frozenset[str]:
        """The largest set of values that their makers can write and all their readers read."""
        wanted = {name for name in self._scales if self._asked_for(name)}
        while True:
            kept = {name for name in wanted if self._can_be_stored(name, wanted)}
            if kept == wanted:
                return frozenset(kept)
            wanted = kept

    def _asked_for(self, name: str) -> bool:
        """Whether a layer multiplies it, filters it or adds it to what it multiplies, behind a pool or not."""
        steps = [self._graph.steps[number] for number in self._readers.get(name, ())]
        return any(
            step.name in self._takers
            or self._is_depthwise(step)
            or (step.kind == "max_pool" and self._asked_for(step.outputs[0]))
            for step in steps
        )

    def _is_depthwise(self, step: Step) -> bool:
        """It reads and writes INT8, and multiplies floats: what it does is move numbers."""
        channels = self._graph.values[step.outputs[0]].shape[-1]
        plain = step.kind == "conv" and step.attributes.get("groups") == channels > 1 and self._datatype == "INT8"
        return plain and self._graph.shape(step.inputs[0])[3] == channels

    def _can_be_stored(self, name: str, others: set[str]) -> bool:
        maker = self._makers.get(name)
        value = self._graph.values.get(name)
        if maker is None or value is None or name in self._ends or value.datatype not in FLOATS:
            return False
        if not self._can_write(maker, name, others):
            return False
        return all(self._can_read(self._graph.steps[number], name, others) for number in self._readers.get(name, ()))

    def _can_write(self, maker: Step, name: str, others: set[str]) -> bool:
        if maker.kind == "max_pool":
            x = maker.inputs[0].value
            return x in others and self._scales[x] == self._scales[name]
        if maker.kind == "pad":
            return maker.attributes.get("value") == 0.0
        grouped = maker.attributes.get("groups", 1) != 1
        return maker.kind in _WRITERS and (not grouped or self._is_depthwise(maker))

    def _can_read(self, step: Step, name: str, others: set[str]) -> bool:
        roles = {operand.role for operand in step.inputs if operand.value == name}
        if step.kind == "max_pool":
            return step.outputs[0] in others and self._scales[step.outputs[0]] == self._scales[name]
        if step.kind == "reduce":
            pools = step.attributes.get("axes") == (1, 2) and len(self._graph.values[name].shape) == 4
            return step.attributes.get("how") == "mean" and pools and step.inputs[0].view is None
        # What is added to a sum of e4m3 wants more digits than that has.
        added = {"residual"} if self._datatype == "INT8" and step.kind in _LAYERS else set()
        return roles <= ({"x"} | added if step.name in self._takers or self._is_depthwise(step) else added)

    # ---- the graph ----

    def result(self, weights: Mapping[str, Any], rounded: Rounded) -> tuple[LoweredGraph, dict[str, Any]]:
        values = {
            name: replace(value, datatype=self._datatype, scale=self._scales[name]) if name in self._stored else value
            for name, value in self._graph.values.items()
        }
        made: dict[str, Any] = {}
        copies: dict[str, str] = {}
        steps: list[Step] = []
        for step in self._graph.steps:
            if step.name not in self._takers:
                steps.append(step)
                continue
            x, weight = step.operand("x"), step.operand("weight")
            assert x is not None
            assert weight is not None
            seen = x.value
            if seen not in self._stored:
                if seen not in copies:
                    copies[seen] = self._copied(seen, values, steps)
                seen = copies[seen]
            narrow, scale = f"{weight.value}.{self._datatype.lower()}", f"{step.name}.scale"
            rows = self._weights[weight.value]
            if narrow not in made:
                made[narrow] = rounded(weights[weight.value], rows, self._datatype)
            made[scale] = rows * self._scales[x.value]
            changed = {"x": Operand(seen, "x", x.view), "weight": Operand(narrow, "weight")}
            inputs = (*(changed.get(each.role, each) for each in step.inputs), Operand(scale, "scale"))
            steps.append(replace(step, inputs=inputs))
        graph = replace(self._graph, values=values, steps=tuple(steps), weights={})
        return _with_weights(graph, self._graph, {**weights, **made}, made, self._datatype)

    def _copied(self, name: str, values: dict[str, Value], steps: list[Step]) -> str:
        """The eight-bit copy of a value, made right behind the value itself."""
        fresh = f"{name}.{self._datatype.lower()}"
        values[fresh] = replace(values[name], datatype=self._datatype, scale=self._scales[name])
        program = (Instruction("identity", ("i0",)),)
        maker = self._makers.get(name)
        step = Step(f"{fresh}.made", "pointwise", (Operand(name),), (fresh,), program=program)
        place = next((at + 1 for at, each in enumerate(steps) if maker is not None and name in each.outputs), 0)
        steps.insert(place, step)
        return fresh


def _with_weights(
    graph: LoweredGraph, before: LoweredGraph, weights: Mapping[str, Any], made: Mapping[str, Any], datatype: str
) -> tuple[LoweredGraph, dict[str, Any]]:
    read = dict.fromkeys(operand.value for step in graph.steps for operand in step.inputs)
    read |= dict.fromkeys(each.value for each in graph.outputs)
    known: dict[str, Weight] = {}
    for name in read:
        if name in made:
            known[name] = Weight(tuple(made[name].shape), "FP32" if name.endswith(".scale") else datatype)
        elif name in before.weights:
            known[name] = before.weights[name]
    return replace(graph, weights=known), {name: weights[name] for name in known}
