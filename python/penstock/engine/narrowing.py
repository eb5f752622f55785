"""What type each value of a lowered graph has in a precision, and which constants keep theirs.

`narrowed` is what an executor runs: the same steps with floats of one type, and casts where a step asks for another.
Called by `engine.cuda`; nothing is computed.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from penstock.engine.lowered import FLOATS, Instruction, LoweredGraph, Operand, Step
from penstock.errors import InvalidArgument


def scaled(graph: LoweredGraph, step: Step) -> bool:
    """Whether the step reads or writes a value with a scale."""
    names = (*(operand.value for operand in step.inputs), *step.outputs)
    return any(name in graph.values and graph.values[name].scale is not None for name in names)


def wide_weights(graph: LoweredGraph) -> frozenset[str]:
    """Weights that stay FP32 in every precision: scales, what is added to sums that have one, and factors of heads."""
    scales = [step for step in graph.steps if step.operand("scale") is not None]
    found = {each.value for step in scales for each in step.inputs if each.role.endswith(("scale", "bias"))}
    heads = [step.operand("scales") for step in graph.steps if step.kind in ("attention", "channel_attention")]
    return frozenset(found | {each.value for each in heads if each is not None})


def narrowed(graph: LoweredGraph, datatype: str) -> LoweredGraph:
    """The graph with its FP32, FP16 and BF16 values in one type; what comes in and goes out keeps its own.

    A pointwise step with a number that FP16 can't hold (a mask of -3e38) keeps an FP32 result. Every step reads
    whatever type its operands have and writes its outputs' type, but for the heavy ones, which get a cast: theirs is
    the type of the weights. FP64 stays FP64 where no weight is beside it.
    """
    if datatype not in FLOATS:
        raise InvalidArgument(f"values can't be {datatype}, expected one of {', '.join(FLOATS)}")
    kept = {each.name for each in graph.inputs} | {each.value for each in graph.outputs}
    wide = {name for step in graph.steps if datatype == "FP16" and _is_wide(step) for name in step.outputs}
    wide |= {name for step in graph.steps if step.kind == "gemm_norm" for name in step.outputs[1:]}
    wide |= {name for step in graph.steps if step.kind == "norm_factors" for name in step.outputs}
    values = {
        name: replace(value, datatype="FP32" if name in wide else datatype)
        if value.datatype in _COMPUTED and name not in kept
        else value
        for name, value in graph.values.items()
    }
    steps: list[Step] = []
    casts: dict[str, str] = {}
    for step in graph.steps:
        cast = {*_COMPUTED, "FP64"} if _has_weights(graph, step) else set(_COMPUTED)
        inputs: list[Operand] = []
        for operand in step.inputs:
            value = values.get(operand.value)
            as_it_is = value is None or value.datatype == datatype or value.datatype not in cast
            if value is None or as_it_is or step.kind in _READS_ANY or operand.role in _ANY_TYPE:
                inputs.append(operand)
                continue
            if operand.value not in casts:
                name = _fresh(f"{operand.value}.{datatype.lower()}", values.keys() | graph.weights.keys())
                casts[operand.value] = name
                values[name] = replace(value, datatype=datatype)
                program = (Instruction("identity", ("i0",)),)
                steps.append(Step(f"{name}.cast", "pointwise", (Operand(operand.value),), (name,), program=program))
            inputs.append(replace(operand, value=casts[operand.value]))
        steps.append(replace(step, inputs=tuple(inputs)))
    return replace(graph, values=values, steps=tuple(steps))


_COMPUTED: Final = ("FP16", "BF16", "FP32")
_READS_ANY: Final = (
    "pointwise",
    "pieces",
    "copy",
    "gather",
    "gather_elements",
    "gather_nd",
    "grid_sample",
    "pad",
    "picture_pool",
)
_ANY_TYPE: Final = ("mask", "scales", "x_moments", "residual_moments")  # roles
_FP16_MAX: Final = 65504.0


def _has_weights(graph: LoweredGraph, step: Step) -> bool:
    weights = (graph.weights.get(operand.value) for operand in step.inputs)
    return any(weight is not None and weight.datatype in FLOATS for weight in weights)


def _is_wide(step: Step) -> bool:
    numbers = (each for line in step.program for each in line.arguments if not isinstance(each, str))
    return any(math.isfinite(each) and abs(each) > _FP16_MAX for each in numbers)


def _fresh(hint: str, taken: Iterable[str]) -> str:
    names, name, count = set(taken), hint, 0
    while name in names:
        count += 1
        name = f"{hint}.{count}"
    return name
