"""A lowered graph: what a GPU engine executes, as data. Steps in order, values with shape, type and layout, weights.

Promises: `from_json` believes nothing (every name is defined before it is read, every view lies inside its value,
else InvalidArgument), and `to_json` loses nothing. No library is imported and nothing is computed. `graph.lowering`
writes these, `engine.cuda` executes them, tactics name an implementation for each step.

A value is a dense tensor and its shape is the stored one: a feature map has shape [N, H, W, C] and layout `nhwc`,
everything else is `plain`. Steps read values (or weights) through operands; an operand may see its value through a
`View`, which is how reshapes, transposes, slices and broadcasting cost nothing. A step's attributes speak of stored
axes. Weights of convolutions are [out, kh, kw, in / groups], those of transposed ones [in, kh, kw, out / groups], those
of matrix products [N, K]: out, in.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from penstock.engine import kinds, pieces
from penstock.engine.extents import misfit
from penstock.engine.plan import Shape
from penstock.errors import InvalidArgument

Layout = Literal["nhwc", "plain"]
Number = kinds.Number
Attribute = kinds.Attribute
KINDS: Final = kinds.KINDS
INSTRUCTIONS: Final = kinds.INSTRUCTIONS
FORMAT: Final = 1

DATATYPES: Final = (
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8"),
    *("FP8", "FP16", "BF16", "FP32", "FP64"),
)
FLOATS: Final = ("FP16", "BF16", "FP32", "FP64")
EIGHT_BITS: Final = ("INT8", "FP8")
"""Types that values may have a scale in; FP8 is e4m3, which has no infinity."""


@dataclass(frozen=True, slots=True)
class Value:
    """A dense tensor that a step makes, or that comes in."""

    shape: Shape
    datatype: str
    """Of DATATYPES."""

    layout: Layout = "plain"

    scale: float | None = None
    """What one step of an INT8 or FP8 value is worth; None: it is no float in disguise."""


@dataclass(frozen=True, slots=True)
class View:
    """Strided access to a value, in elements; a stride of 0 repeats."""

    shape: Shape
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Operand:
    """What a step reads."""

    value: str
    """A value or a weight."""

    role: str = ""
    """`x`, `weight`, `bias`, `residual`, ...; empty where steps number their operands."""

    view: View | None = None
    """None: the value as it is."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One operator of a pointwise program. Floats are computed in FP32."""

    name: str
    arguments: tuple[str | Number, ...]
    """`i0` is the step's first operand, `t0` the first instruction's result; numbers are themselves."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one kernel, or a short fixed sequence, executes."""

    name: str
    kind: str
    """`conv`, `gemm`, `attention`, `pointwise`, ...: a key of `engine.cuda`'s table of implementations."""

    inputs: tuple[Operand, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    program: tuple[Instruction, ...] = ()
    """Of pointwise steps, and of pads that compute what they move; the last one's result is what is written."""

    nodes: tuple[str, ...] = ()
    """Names of the source model's nodes that went into it."""

    implementation: str = ""
    """Chosen by tactics; empty: the reference."""

    def operand(self, role: str) -> Operand | None:
        return next((operand for operand in self.inputs if operand.role == role), None)


@dataclass(frozen=True, slots=True)
class Input:
    """What a caller gives, in the model's own layout; its value has the same name."""

    name: str
    shape: Shape
    datatype: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a caller gets: a value with the model's own shape, same elements in the same order."""

    name: str
    value: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant tensor; its numbers are beside the graph, under its name."""

    shape: Shape
    datatype: str


@dataclass(frozen=True, slots=True)
class LoweredGraph:
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    values: Mapping[str, Value]
    weights: Mapping[str, Weight]
    steps: tuple[Step, ...]

    def shape(self, operand: Operand) -> Shape:
        """What the step sees."""
        return operand.view.shape if operand.view is not None else self.stored(operand.value).shape

    def stored(self, name: str) -> Value | Weight:
        return self.values[name] if name in self.values else self.weights[name]

    def readers(self) -> Mapping[str, tuple[int, ...]]:
        """Value -> numbers of the steps that read it, ascending."""
        found: dict[str, list[int]] = {}
        for number, step in enumerate(self.steps):
            for name in dict.fromkeys(operand.value for operand in step.inputs):
                found.setdefault(name, []).append(number)
        return {name: tuple(numbers) for name, numbers in found.items()}


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor, last axis fastest."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


# ---- JSON ----


def to_json(graph: LoweredGraph) -> str:
    return json.dumps(to_data(graph), indent=None, separators=(",", ":"), allow_nan=True)


def to_data(graph: LoweredGraph) -> dict[str, Any]:
    """What JSON can write."""
    return {
        "format": FORMAT,
        "inputs": [[each.name, list(each.shape), each.datatype] for each in graph.inputs],
        "outputs": [[each.name, each.value, list(each.shape)] for each in graph.outputs],
        "values": {name: _value_to_json(each) for name, each in graph.values.items()},
        "weights": {name: [list(each.shape), each.datatype] for name, each in graph.weights.items()},
        "steps": [_step_to_json(step) for step in graph.steps],
    }


def from_json(text: str | bytes) -> LoweredGraph:
    """Raises InvalidArgument for anything `to_json` can't have written, or that could not be executed safely."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"a lowered graph can't be read: {error!s:.200}") from None
    return from_data(data)


def from_data(data: Any) -> LoweredGraph:
    """The same of JSON that was read."""
    try:
        if data["format"] != FORMAT:
            raise InvalidArgument(f"a lowered graph has format {data['format']!r}, this version reads {FORMAT}")
        graph = LoweredGraph(
            tuple(Input(_text(name), _shape(shape), _type(kind)) for name, shape, kind in data["inputs"]),
            tuple(Output(_text(name), _text(value), _shape(shape)) for name, value, shape in data["outputs"]),
            {_text(name): _value_from_json(*each) for name, each in data["values"].items()},
            {_text(name): Weight(_shape(shape), _type(kind)) for name, (shape, kind) in data["weights"].items()},
            tuple(map(_step_from_json, data["steps"])),
        )
    except InvalidArgument:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidArgument(f"a lowered graph can't be read: {error!r:.200}") from None
    validate(graph)
    return graph


def validate(graph: LoweredGraph) -> None:
    """Names are defined once and before they are read, views stay inside what they look at, and steps have what their
    kind needs, in numbers that a machine can have; else InvalidArgument.
    """
    _check_names(graph)
    made: set[str] = set(graph.weights)
    for each in graph.inputs:
        value = graph.values.get(each.name)
        if value is None or value.shape != each.shape or value.datatype != each.datatype or each.name in made:
            raise InvalidArgument(f"input {each.name!r} has no value of its shape {list(each.shape)}")
        made.add(each.name)
    for step in graph.steps:
        _check_roles(step)
        for operand in step.inputs:
            if operand.value not in made:
                raise InvalidArgument(f"step {step.name!r} reads {operand.value!r} before anything made it")
            if operand.view is not None:
                _check_size(f"step {step.name!r:.100}", operand.view.shape)
                _inside(step.name, operand.view, graph.stored(operand.value).shape)
        for name in step.outputs:
            if name not in graph.values or name in made:
                raise InvalidArgument(f"step {step.name!r} makes {name!r}, which is unknown or there already")
            made.add(name)
        _check_program(step)
        _check_shapes(graph, step)
    for output in graph.outputs:
        if output.value not in made or math.prod(output.shape) != math.prod(graph.stored(output.value).shape):
            raise InvalidArgument(f"output {output.name!r} has no value of its size")


def _check_names(graph: LoweredGraph) -> None:
    if both := graph.values.keys() & graph.weights.keys():
        raise InvalidArgument(f"{min(both)!r} is both a value and a weight")
    for name in (*graph.values, *graph.weights):
        _check_size(f"{name!r:.100}", graph.stored(name).shape)
    ends = {each.name for each in graph.inputs} | {each.value for each in graph.outputs}
    for name, value in graph.values.items():
        bare = value.datatype == "FP8" and value.scale is None
        if bare or (value.scale is not None and not _can_have(value.datatype, value.scale, name in ends)):
            raise InvalidArgument(f"{name!r:.100} is {value.datatype} with the scale {value.scale}")
    if len({output.name for output in graph.outputs}) != len(graph.outputs):
        raise InvalidArgument("two outputs have the same name")


def _can_have(datatype: str, scale: float, is_end: bool) -> bool:
    """What comes in and goes out is what it is."""
    return datatype in EIGHT_BITS and 0 < scale < math.inf and not is_end


def _inside(name: str, view: View, shape: Shape) -> None:
    fits = len(view.shape) == len(view.strides) and view.offset >= 0 and min(view.strides, default=0) >= 0
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=False))
    if not fits or (0 not in view.shape and last >= math.prod(shape)):
        raise InvalidArgument(f"step {name!r} looks beyond a value of shape {list(shape)}: {view}")


def _check_roles(step: Step) -> None:
    if step.kind not in KINDS:
        raise InvalidArgument(f"step {step.name!r} has kind {step.kind!r}, expected one of {', '.join(KINDS)}")
    if missing := [role for role in KINDS[step.kind] if step.operand(role) is None]:
        raise InvalidArgument(f"step {step.name!r} of kind {step.kind!r} has no operand {missing[0]!r}")
    if not step.inputs or len(step.outputs) not in kinds.OUTPUTS.get(step.kind, (1,)):
        raise InvalidArgument(
            f"step {step.name!r} of kind {step.kind!r} reads {len(step.inputs)} values and writes {len(step.outputs)}"
        )


_MOST_ELEMENTS: Final = 2**40
_LONGEST_AXIS: Final = 2**31 - 1


def _check_size(what: str, shape: Shape) -> None:
    if max(shape, default=0) > _LONGEST_AXIS or math.prod(shape) > _MOST_ELEMENTS:
        raise InvalidArgument(f"{what} has shape {list(shape)}, expected at most {_MOST_ELEMENTS} numbers")


def _check_shapes(graph: LoweredGraph, step: Step) -> None:
    """Axes are there and those that something is divided by have a size; attributes fit them."""
    for role, axes in kinds.AXES.get(step.kind, {}).items():
        operand = step.operand(role)
        if operand is None and role not in KINDS[step.kind]:
            continue
        shape = graph.shape(operand) if operand is not None else ()
        if len(shape) != axes:
            raise InvalidArgument(f"step {step.name!r}: {role} has shape {list(shape)}, expected {axes} axes")
        if 0 in shape[1:] and (step.kind in kinds.MAPS or role == "recurrence"):
            raise InvalidArgument(f"step {step.name!r}: {role} has shape {list(shape)}, expected numbers inside")
    for operand in step.inputs:
        if (
            step.kind in kinds.LAYERS
            and operand.role.lstrip(kinds.NUMBERED) in kinds.CONSTANT
            and operand.value not in graph.weights
        ):
            raise InvalidArgument(f"step {step.name!r}: its {operand.role} is no weight")
    out = graph.values[step.outputs[0]].shape
    if step.kind in kinds.MAPS and step.kind != "squeeze_excite" and len(out) != 4:
        raise InvalidArgument(f"step {step.name!r}: its result has shape {list(out)}, expected 4 axes")
    if step.kind == "gemm_norm":
        _check_moments(graph, step)
    if step.kind == "pieces" and "pieces" in step.attributes:
        _check_pieces(graph, step)
    if step.kind == "layer_norm" and any(graph.values[name].shape != out for name in step.outputs):
        raise InvalidArgument(f"step {step.name!r}: expected the sum and its norm to have one shape")
    operand = step.operand("x")
    axes = len(out) if operand is None else len(graph.shape(operand))
    if problem := kinds.refused(step.kind, step.attributes, axes):
        raise InvalidArgument(f"step {step.name!r} of kind {step.kind!r} {problem}")
    # Of two that play one role the first does.
    read = {each.role: (graph.shape(each), graph.stored(each.value).datatype) for each in reversed(step.inputs)}
    written = [(graph.values[name].shape, graph.values[name].datatype) for name in step.outputs]
    if problem := misfit(step.kind, step.attributes, read, written):
        raise InvalidArgument(f"step {step.name!r} of kind {step.kind!r}: {problem}")


def _check_moments(graph: LoweredGraph, step: Step) -> None:
    """Two numbers of each of some parts of a row."""
    wide, high = graph.shape(step.inputs[0])[-1:], graph.values[step.outputs[0]].shape[-1:]
    rows = [
        (graph.shape(each), wide if each.role[0] == "x" else high) for each in step.inputs if "moments" in each.role
    ]
    rows += [(graph.values[name].shape, high) for name in step.outputs[1:]]
    for shape, row in rows:
        if len(shape) != 3 or shape[2] != 2 or not shape[1] or not row or row[0] % shape[1]:
            raise InvalidArgument(f"step {step.name!r}: moments have shape {list(shape)} for rows of {list(row)}")


def _check_program(step: Step) -> None:
    if (step.kind in _COMPUTING) != bool(step.program) and (step.kind != "pad" or not step.program):
        raise InvalidArgument(f"step {step.name!r} of kind {step.kind!r}: only pointwise steps and pads have programs")
    known = {f"i{number}" for number in range(len(step.inputs))}
    for number, line in enumerate(step.program):
        if INSTRUCTIONS.get(line.name) != len(line.arguments):
            raise InvalidArgument(f"step {step.name!r}: no instruction {line.name} of {len(line.arguments)} arguments")
        names = [each for each in line.arguments if isinstance(each, str)]
        if unknown := [each for each in names if each not in known]:
            raise InvalidArgument(f"step {step.name!r} computes with {unknown[0]!r} before it is there")
        if not names or (line.name in _OF_THE_FIRST and not isinstance(line.arguments[0], str)):
            raise InvalidArgument(f"step {step.name!r}: {line.name} is of a number, expected what is read or computed")
        if line.name in _WITH_NUMBERS and len(names) > 1:
            raise InvalidArgument(f"step {step.name!r}: {line.name} by what is no number")
        known.add(f"t{number}")


def _check_pieces(graph: LoweredGraph, step: Step) -> None:
    """Each has lines of its own, which compute with each other and with what is seen in its shape."""
    try:
        found = pieces.read(step.attributes["pieces"], math.prod(graph.values[step.outputs[0]].shape))
    except ValueError as error:
        raise InvalidArgument(f"step {step.name!r}: {error}") from None
    if sum(each.lines for each in found) != len(step.program):
        raise InvalidArgument(f"step {step.name!r}: its pieces have not {len(step.program)} lines together")
    begin = 0
    for each in found:
        own = {f"t{number}" for number in range(begin, begin + each.lines)}
        for line in step.program[begin : begin + each.lines]:
            for name in line.arguments:
                operand = isinstance(name, str) and name[0] == "i"
                seen = graph.shape(step.inputs[int(str(name)[1:])]) if operand else each.shape
                if seen != each.shape or (isinstance(name, str) and not operand and name not in own):
                    raise InvalidArgument(f"step {step.name!r}: {name} is not of the piece that computes with it")
        begin += each.lines


_COMPUTING: Final = ("pointwise", "pieces")
_WITH_NUMBERS: Final = ("clip", "star_relu")
_OF_THE_FIRST: Final = ("leaky_relu", "elu", "where", "hard_sigmoid", "clip", "star_relu")


def _value_to_json(value: Value) -> list[Any]:
    return [list(value.shape), value.datatype, value.layout, *([] if value.scale is None else [value.scale])]


def _value_from_json(shape: Any, kind: Any, layout: Any, scale: Any = None) -> Value:
    return Value(_shape(shape), _type(kind), _layout(layout), None if scale is None else float(_number(scale)))


def _step_to_json(step: Step) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": step.name,
        "kind": step.kind,
        "inputs": [_operand_to_json(operand) for operand in step.inputs],
        "outputs": list(step.outputs),
        "nodes": list(step.nodes),
    }
    if step.attributes:
        data["attributes"] = {
            name: list(each) if isinstance(each, tuple) else each for name, each in step.attributes.items()
        }
    if step.program:
        data["program"] = [[line.name, *line.arguments] for line in step.program]
    if step.implementation:
        data["implementation"] = step.implementation
    return data


def _operand_to_json(operand: Operand) -> list[Any]:
    view = operand.view
    seen = [] if view is None else [[list(view.shape), list(view.strides), view.offset]]
    return [operand.value, operand.role, *seen]


def _step_from_json(data: Mapping[str, Any]) -> Step:
    return Step(
        _text(data["name"]),
        _text(data["kind"]),
        tuple(map(_operand_from_json, data["inputs"])),
        tuple(map(_text, data["outputs"])),
        {_text(name): _attribute(each) for name, each in data.get("attributes", {}).items()},
        tuple(
            Instruction(_text(name), tuple(each if isinstance(each, str) else _number(each) for each in arguments))
            for name, *arguments in data.get("program", [])
        ),
        tuple(map(_text, data["nodes"])),
        _text(data.get("implementation", "")),
    )


def _operand_from_json(data: Sequence[Any]) -> Operand:
    value, role, *seen = data
    if not seen:
        return Operand(_text(value), _text(role))
    ((shape, strides, offset),) = seen
    return Operand(_text(value), _text(role), View(_shape(shape), _shape(strides), _size(offset)))


def _attribute(value: Any) -> Attribute:
    if isinstance(value, str):
        return value
    return tuple(map(_number, value)) if isinstance(value, list) else _number(value)


def _number(value: Any) -> Number:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r:.60} is no number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a number has more than 64 bits")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise ValueError(f"{value!r:.60} is no size")
    return value


def _shape(value: Any) -> Shape:
    if not isinstance(value, list) or len(value) > 16:
        raise ValueError(f"{value!r:.60} is no shape")
    return tuple(map(_size, value))


def _type(value: Any) -> str:
    if value not in DATATYPES:
        raise ValueError(f"{value!r:.60} is no datatype, expected one of {', '.join(DATATYPES)}")
    return str(value)


def _layout(value: Any) -> Layout:
    if value == "nhwc":
        return "nhwc"
    if value == "plain":
        return "plain"
    raise ValueError(f"{value!r:.60} is no layout")
