"""Joins the layers of residual blocks: shortcuts that are layers with what they are added to, and whole bottlenecks.

Works on steps that `fusing` has given their epilogues, before `joining`. Where two convolutions are added, the one with
more to do takes the sum and its activation, whichever came first in the model. A bottleneck is joined only where there
are pixels enough to fill the chip with blocks that keep its maps, and its maps are narrow enough to be kept.
Layers of INT8 are joined where all they read and write is INT8; what lies between two of them keeps its scale, as the
attribute `inner_step`, and a shortcut is joined only as part of a bottleneck, where its own scale no longer matters.
Called by `graph.lowering` and by `eight_bits`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from penstock.engine.lowered import Attribute, LoweredGraph, Operand, Step, View

# Blocks of 128 pixels for three quarters of the chip; fewer pixels are better off with a kernel for each layer, whose
# blocks share the channels too.
_FEWEST_PIXELS: Final = 12_000
# What a block of 128 pixels can keep in registers beside sums, and the sums of the layer behind.
_WIDEST_MIDDLE: Final = 256
_WIDEST_OUT: Final = 128
_WIDEST_SOURCE: Final = 256
_NARROWEST: Final = 16
# In INT8: the depth of an instruction; what lies behind is no wider than what lies between, of which registers hold as
# much (64 x 56 x 56 pixels, 64 to 256 to 128 channels: 111 microseconds joined, 88 apart).
_NARROWEST_INTEGERS: Final = 32
_WIDEST_MIDDLE_INTEGERS: Final = 128
_WIDEST_SOURCE_INTEGERS: Final = 256
_WHOLE: Final = 64  # channels of x and of the sum are taken by so many at a time
_NUMBERS: Final = ("alpha", "beta")


def join_blocks(graph: LoweredGraph, fewest_pixels: int = _FEWEST_PIXELS) -> LoweredGraph:
    """Layers of floats."""
    joining = _Blocks(graph, fewest_pixels, integers=False)
    joining.exchange()
    joining.find_shortcuts()
    joining.find_bottlenecks()
    return joining.result()


def join_blocks_of_integers(graph: LoweredGraph, fewest_pixels: int = _FEWEST_PIXELS) -> LoweredGraph:
    """Layers of INT8."""
    joining = _Blocks(graph, fewest_pixels, integers=True)
    joining.find_inner_shortcuts()
    joining.find_bottlenecks()
    return joining.result()


@dataclass(frozen=True, slots=True)
class _Conv:
    number: int
    step: Step
    out: int
    channels: int
    taps: int

    @property
    def weights(self) -> int:
        return self.out * self.channels * self.taps

    @property
    def plain(self) -> bool:
        """Nothing behind it but its bias."""
        return self.step.attributes.get("activation", "none") == "none" and self.step.operand("residual") is None

    def pointwise(self, *, dense: bool) -> bool:
        """One pixel of each, or with `dense` exactly its own pixel."""
        attributes = self.step.attributes
        one = attributes.get("kernel") == (1, 1) and attributes.get("pads") == (0, 0, 0, 0)
        return one and (not dense or attributes.get("strides") == (1, 1))


class _Blocks:
    def __init__(self, graph: LoweredGraph, fewest_pixels: int, *, integers: bool) -> None:
        self._graph = graph
        self._fewest_pixels = fewest_pixels
        self._integers = integers
        self._steps: list[Step | None] = list(graph.steps)
        self._makers = {name: number for number, step in enumerate(graph.steps) for name in step.outputs}
        self._kept = {output.value for output in graph.outputs}

    # ---- sums of two convolutions ----

    def exchange(self) -> None:
        """first; second + first, activated -> second; first + second, activated, where `first` has more to do."""
        for number in range(len(self._steps)):
            second = self._conv(number)
            first = self._added(second) if second is not None else None
            if second is None or first is None or not self._rather(first, second):
                continue
            if any(self._makers.get(each.value, -1) >= first.number for each in second.step.inputs if each.role == "x"):
                continue
            total, one = second.step.outputs[0], first.step.outputs[0]
            ending = _ending(second.step)
            alone = {name: each for name, each in second.step.attributes.items() if name not in ending}
            inputs = tuple(each for each in second.step.inputs if each.role != "residual")
            self._steps[first.number] = replace(second.step, inputs=inputs, outputs=(one,), attributes=alone)
            self._steps[number] = replace(
                first.step,
                inputs=(*first.step.inputs, Operand(one, "residual")),
                outputs=(total,),
                attributes={**first.step.attributes, **ending},
            )

    def _added(self, conv: _Conv) -> _Conv | None:
        """The plain convolution whose result alone is added before this one's activation."""
        residual = conv.step.operand("residual")
        if residual is None or residual.view is not None or conv.step.attributes.get("residual") == "after":
            return None
        value = residual.value
        if value in self._kept or self._readers(value) != {conv.number} or value not in self._makers:
            return None
        if [each.value for each in conv.step.inputs].count(value) != 1:
            return None
        found = self._conv(self._makers[value])
        return found if found is not None and found.plain else None

    def _rather(self, first: _Conv, second: _Conv) -> bool:
        """Whether it should take the sum: it has more weights, or as many and nobody else reads what it reads."""
        if first.weights != second.weights or first.taps != second.taps:
            return first.taps > second.taps or (first.taps == second.taps and self._alone(first))
        return self._alone(first) and not self._alone(second)

    def _alone(self, conv: _Conv) -> bool:
        return len(self._readers(conv.step.inputs[0].value)) == 1

    def find_shortcuts(self) -> None:
        """1 x 1 convolution -> added to another: one step."""
        for number in range(len(self._steps)):
            conv = self._conv(number)
            shortcut = self._added(conv) if conv is not None else None
            if conv is None or shortcut is None or not shortcut.pointwise(dense=False):
                continue
            if conv.channels % _NARROWEST or shortcut.channels % _NARROWEST or shortcut.step.inputs[0].view is not None:
                continue
            self._steps[shortcut.number] = None
            self._steps[number] = _added_up(conv, shortcut, conv)

    def find_inner_shortcuts(self) -> None:
        """The same where a bottleneck comes of it, whichever of the two has the sum."""
        for number in range(len(self._steps)):
            last = self._conv(number)
            first = self._added(last) if last is not None else None
            if last is None or first is None:
                continue
            for conv, shortcut in ((last, first), (first, last)):
                one = conv.pointwise(dense=True) and shortcut.pointwise(dense=False)
                if not one or shortcut.step.inputs[0].view is not None:
                    continue
                made = _added_up(conv, shortcut, last)
                window = self._before(made)
                if window is not None and self._worth_joining(window, made):
                    self._steps[first.number] = None
                    self._steps[number] = made
                    break

    # ---- bottlenecks ----

    def find_bottlenecks(self) -> None:
        """window -> 1 x 1 with what is added, and the 1 x 1 that reads the sum."""
        for number in range(len(self._steps)):
            step = self._steps[number]
            first = self._before(step) if step is not None else None
            if step is None or first is None or not self._worth_joining(first, step):
                continue
            operands = [each for each in first.step.inputs if each.role != "residual"]
            for each in step.inputs[1:]:
                role = _OF_THE_SECOND.get(each.role, each.role)
                operands.append(self._flat(each, role) if role == "second" else replace(each, role=role))
            attributes = {name: each for name, each in first.step.attributes.items() if name not in _ENDINGS}
            attributes |= _renamed(first.step, "inner") | _renamed(step, "activation")
            if "shortcut_strides" in step.attributes:
                attributes["shortcut_strides"] = step.attributes["shortcut_strides"]
            if self._integers:
                scale = self._graph.values[step.inputs[0].value].scale
                assert scale is not None
                attributes["inner_step"] = scale
            nodes, outputs, kind = (*first.step.nodes, *step.nodes), step.outputs, "bottleneck"
            third = self._behind(step.outputs[0], first)
            if third is not None:
                kind, outputs = "bottleneck_next", (*outputs, *third.step.outputs)
                operands += _matrix(third, "third")
                attributes |= _renamed(third.step, "outer")
                nodes = (*nodes, *third.step.nodes)
                self._steps[third.number] = None
                self._makers[third.step.outputs[0]] = number
            self._steps[first.number] = None
            self._steps[number] = Step(step.name, kind, tuple(operands), outputs, attributes, (), nodes)

    def _before(self, step: Step) -> _Conv | None:
        """The convolution whose result only this 1 x 1 layer reads."""
        x = step.inputs[0]
        if step.kind not in ("conv", "conv_shortcut") or x.view is not None or x.value in self._kept:
            return None
        attributes = step.attributes
        one = attributes.get("kernel") == (1, 1) == attributes.get("strides") and attributes.get("groups") == 1
        if not one or attributes.get("pads") != (0, 0, 0, 0) or attributes.get("residual") == "after":
            return None
        if x.value not in self._makers or [each.value for each in step.inputs].count(x.value) != 1:
            return None
        number = self._makers[x.value]
        found = self._conv(number)
        if found is None or found.step.operand("residual") is not None or len(self._readers(x.value)) != 1:
            return None
        return found

    def _worth_joining(self, first: _Conv, step: Step) -> bool:
        out = self._graph.values[step.outputs[0]].shape
        if math.prod(out[:3]) < self._fewest_pixels or first.taps == 1 or first.channels % _WHOLE or out[3] % _WHOLE:
            return False
        shortcut = step.operand("shortcut")
        if self._integers and shortcut is None:  # three kernels are as fast
            return False
        widest = _WIDEST_SOURCE_INTEGERS if self._integers else _WIDEST_SOURCE
        if not self._is_ours(step) or (shortcut and not self._fits(self._graph.shape(shortcut)[1], widest)):
            return False
        widest = _WIDEST_MIDDLE_INTEGERS if self._integers else _WIDEST_MIDDLE
        return self._fits(first.out, widest) and out[3] > first.out

    def _behind(self, value: str, first: _Conv) -> _Conv | None:
        """The 1 x 1 layer that makes few channels of the sum: the next block's first."""
        if first.out > _WIDEST_OUT:
            return None
        widest = first.out if self._integers else _WIDEST_OUT
        for number in sorted(self._readers(value)):
            found = self._conv(number)
            if found is None or not found.pointwise(dense=True) or found.step.operand("residual") is not None:
                continue
            if found.step.inputs[0].value == value and self._fits(found.out, widest):
                return found
        return None

    # ---- shared ----

    def _conv(self, number: int) -> _Conv | None:
        step = self._steps[number]
        if step is None or step.kind != "conv" or step.attributes.get("groups") != 1 or step.inputs[0].role != "x":
            return None
        weight = step.operand("weight")
        if weight is None or weight.view is not None or step.inputs[0].view is not None or not self._is_ours(step):
            return None
        out, high, wide, channels = self._graph.weights[weight.value].shape
        return _Conv(number, step, out, channels, high * wide)

    def _is_ours(self, step: Step) -> bool:
        """Floats from end to end; or INT8, with activations that kernels know in its steps."""
        names = (*(each.value for each in step.inputs), *step.outputs)
        values = [self._graph.values[name] for name in names if name in self._graph.values]
        if not self._integers:
            return step.operand("scale") is None and all(value.scale is None for value in values)
        known = step.operand("scale") is not None and step.attributes.get("activation", "none") in _OF_INTEGERS
        return known and all(value.scale is not None and value.datatype == "INT8" for value in values)

    def _flat(self, weight: Operand, role: str) -> Operand:
        out, _, _, channels = self._graph.weights[weight.value].shape
        return Operand(weight.value, role, View((out, channels), (channels, 1)))

    def _fits(self, channels: int, widest: int) -> bool:
        """A power of two of them, as blocks have."""
        narrowest = _NARROWEST_INTEGERS if self._integers else _NARROWEST
        return narrowest <= channels <= widest and channels & (channels - 1) == 0

    def _readers(self, value: str) -> set[int]:
        return {
            number
            for number, step in enumerate(self._steps)
            if step is not None and any(operand.value == value for operand in step.inputs)
        }

    def result(self) -> LoweredGraph:
        steps = tuple(step for step in self._steps if step is not None)
        made = {name for step in steps for name in step.outputs} | {each.name for each in self._graph.inputs}
        values = {name: value for name, value in self._graph.values.items() if name in made}
        return replace(self._graph, steps=steps, values=values)


_ENDINGS: Final = ("activation", *_NUMBERS, "residual")
_OF_THE_SECOND: Final = {"weight": "second", "bias": "second_bias", "scale": "second_scale"}
_OF_INTEGERS: Final = ("none", "relu")


def _ending(step: Step) -> Mapping[str, Attribute]:
    """What comes behind a layer."""
    return {name: step.attributes[name] for name in _ENDINGS if name in step.attributes}


def _renamed(step: Step, name: str) -> dict[str, Attribute]:
    """Its activation and that one's numbers, as those of `inner`, `activation` or `outer`."""
    prefix = "" if name == "activation" else f"{name}_"
    found: dict[str, Attribute] = {name: str(step.attributes.get("activation", "none"))}
    return found | {prefix + each: step.attributes[each] for each in _NUMBERS if each in step.attributes}


def _added_up(conv: _Conv, shortcut: _Conv, last: _Conv) -> Step:
    """Both as one step, in place of the one of them that has the sum."""
    operands = [each for each in conv.step.inputs if each.role != "residual"]
    operands += [replace(shortcut.step.inputs[0], role="source"), *_matrix(shortcut, "shortcut")]
    attributes = {name: each for name, each in conv.step.attributes.items() if name not in _ENDINGS}
    attributes |= {name: each for name, each in _ending(last.step).items() if name != "residual"}
    attributes["shortcut_strides"] = shortcut.step.attributes["strides"]
    nodes = (*shortcut.step.nodes, *conv.step.nodes)
    return Step(last.step.name, "conv_shortcut", tuple(operands), last.step.outputs, attributes, (), nodes)


def _matrix(conv: _Conv, role: str) -> list[Operand]:
    """A 1 x 1 layer's weight, seen as [out, in], its bias, and what its sums are worth."""
    weight = conv.step.operand("weight")
    assert weight is not None
    found = [Operand(weight.value, role, View((conv.out, conv.channels), (conv.channels, 1)))]
    beside = ((each, conv.step.operand(each)) for each in ("bias", "scale"))
    return [*found, *(replace(operand, role=f"{role}_{each}") for each, operand in beside if operand is not None)]
