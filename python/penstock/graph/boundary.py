"""What happens at a model's edges, moved into its graph: preprocessing of inputs, reduction of outputs.

`preprocess` makes an input take what a client has (bytes of an image) and computes what the model wants from it;
`reduce` answers the index and value of the largest entry in place of a huge output. Both change the signature, so build
applies them before anything else. The passes fold what they add into the layers next to it.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.plan import Reduction
from penstock.errors import InvalidArgument, UsageError
from penstock.graph.editing import Edit
from penstock.graph.signatures import signature

_TYPES: Final = {"uint8": ir.DataType.UINT8, "float32": ir.DataType.FLOAT}
_LAYOUTS: Final = ("nchw", "nhwc")
_PREPROCESS_FORM: Final = (
    "expected INPUT:uint8|float32,nhwc|nchw,mean=NUMBERS,std=NUMBERS with NUMBERS like 127.5 or 123.675/116.28/103.53"
)
_REDUCE_FORM: Final = "expected OUTPUT:argmax@AXIS, like y:argmax@2"


@dataclass(frozen=True, slots=True)
class _Preprocess:
    """A text of `--preprocess`, read."""

    name: str
    datatype: str = "float32"
    layout: str = "nchw"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def preprocess(model: ir.Model, text: str) -> ir.Model:
    """A copy whose input takes raw data: `x:uint8,nhwc,mean=127.5,std=127.5` computes (x - mean) / std.

    `mean` and `std` are one number or one for each channel: `mean=123.675/116.28/103.53`; left out they are 0 and 1.
    Layout `nhwc` or `nchw` (the default) and type `uint8` or `float32` (the default) say what comes in; `nhwc` needs an
    input of four dimensions. The model's own input must be FP32, with its channels at dimension 1.
    Raises InvalidArgument when the text can't be read or does not fit the model.
    """
    wanted = _read_preprocess(text)
    copy = model.clone()
    inputs = {value.name: value for value in copy.graph.inputs if not value.is_initializer()}
    value = inputs.get(wanted.name)
    if value is None:
        raise InvalidArgument(
            f"preprocess {text!r}: no input {wanted.name!r}, the model has {', '.join(map(str, inputs))}"
        )
    _check_fits(text, wanted, value)
    _prepend(copy, value, wanted)
    return copy


def reduce(model: ir.Model, text: str, *, beside: bool) -> tuple[ir.Model, Reduction]:
    """`y:argmax@2`: in place of output y, `y_index` (INT64) and `y_value` of the largest along axis 2, which goes away.

    Of several that are equally large the first counts, as in NumPy. With `beside` the graph stays as it is (the same
    object comes back), since the caller computes both after the call.
    Raises InvalidArgument when the text can't be read or does not fit the model.
    """
    name, separator, operation = text.rpartition(":")
    kind, _, axis_text = operation.partition("@")
    if not (separator and name) or kind != "argmax" or not axis_text.removeprefix("-").isdecimal():
        raise UsageError(f"reduce {text!r} can't be read, {_REDUCE_FORM}")
    outputs = {spec.name: spec for spec in signature(model)[1]}
    spec, axis = outputs.get(name), int(axis_text)
    if spec is None:
        raise InvalidArgument(f"reduce {text!r}: no output {name!r}, the model has {', '.join(outputs)}")
    if not -len(spec.shape) <= axis < len(spec.shape):
        raise InvalidArgument(f"reduce {text!r}: output {name!r} has {len(spec.shape)} dimensions, got axis {axis}")
    if spec.datatype != "FP32":
        raise InvalidArgument(f"reduce {text!r}: output {name!r} is {spec.datatype}, expected FP32")
    found = Reduction(name, axis % len(spec.shape), beside)
    if beside:
        return model, found
    taken = {*outputs, *(value.name for value in model.graph.inputs)} & {f"{name}_index", f"{name}_value"}
    if taken:
        raise InvalidArgument(f"reduce {text!r}: the model has a {taken.pop()!r} already; reduce beside the graph")
    copy = model.clone()
    _append(copy, found)
    return copy, found


def _read_preprocess(text: str) -> _Preprocess:
    name, separator, rest = text.partition(":")
    if not (separator and name and rest):
        raise UsageError(f"preprocess {text!r} can't be read, {_PREPROCESS_FORM}")
    wanted, given = _Preprocess(name), set()
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        kind = "type" if part in _TYPES else "layout" if part in _LAYOUTS else key
        if kind in given:
            raise UsageError(f"preprocess {text!r}: {kind} is given twice")
        given.add(kind)
        if kind == "type":
            wanted = replace(wanted, datatype=part)
        elif kind == "layout":
            wanted = replace(wanted, layout=part)
        elif equals and key == "mean":
            wanted = replace(wanted, mean=_numbers(text, value))
        elif equals and key == "std":
            wanted = replace(wanted, std=_numbers(text, value))
        else:
            raise UsageError(f"preprocess {text!r}: {part!r} is unknown, {_PREPROCESS_FORM}")
    if not all(wanted.std):
        raise UsageError(f"preprocess {text!r}: std is 0, expected what to divide by")
    return wanted


def _numbers(text: str, value: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(each) for each in value.split("/"))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise InvalidArgument(
            f"preprocess {text!r}: {value!r} are no numbers, expected like 127.5 or 0.485/0.456/0.406"
        )
    return numbers


def _check_fits(text: str, wanted: _Preprocess, value: ir.Value) -> None:
    name = wanted.name
    if value.dtype != ir.DataType.FLOAT:
        kind = value.dtype.name if value.dtype else "of unknown type"
        raise InvalidArgument(f"preprocess {text!r}: input {name!r} is {kind}, expected FP32")
    if value.shape is None or (wanted.layout == "nhwc" and len(value.shape) != 4) or len(value.shape) < 2:
        raise InvalidArgument(f"preprocess {text!r}: input {name!r} has shape {value.shape}, expected N,C,H,W")
    channels = value.shape[1]
    for key, numbers in (("mean", wanted.mean), ("std", wanted.std)):
        if len(numbers) > 1 and isinstance(channels, int) and channels != len(numbers):
            raise InvalidArgument(
                f"preprocess {text!r}: {key} has {len(numbers)} numbers, {name!r} {channels} channels"
            )
    if len({len(each) for each in (wanted.mean, wanted.std)} - {1}) > 1:
        raise InvalidArgument(f"preprocess {text!r}: mean has {len(wanted.mean)} numbers, std {len(wanted.std)}")


def _prepend(model: ir.Model, value: ir.Value, wanted: _Preprocess) -> None:
    """The new input takes the old one's name; the old value becomes what is computed from it."""
    assert value.shape is not None
    graph, dims = model.graph, len(value.shape)
    edit = Edit(model)
    shape = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    channels = max(len(wanted.mean), len(wanted.std))
    if channels > 1:
        shape[1] = channels
    came = [shape[axis] for axis in (0, 2, 3, 1)] if wanted.layout == "nhwc" else shape
    new = ir.val(wanted.name, dtype=_TYPES[wanted.datatype], shape=ir.Shape(came))
    value.name = edit.fresh(f"{wanted.name}_preprocessed")
    value.shape = ir.Shape(shape)
    graph.inputs[list(graph.inputs).index(value)] = new
    if not len(graph):
        raise InvalidArgument(f"the model has no node that input {wanted.name!r} could reach")
    first = graph[0]
    now = new
    if wanted.datatype != "float32":
        now = edit.insert(first, "Cast", (now,), {"to": int(ir.DataType.FLOAT)}, [])
    if wanted.layout == "nhwc":
        now = edit.insert(first, "Transpose", (now,), {"perm": [0, 3, 1, 2]}, [])
    if any(wanted.mean):
        now = edit.insert(first, "Sub", (now, _per_channel(edit, f"{wanted.name}_mean", wanted.mean, dims)), {}, [])
    if any(number != 1 for number in wanted.std):
        # In FP64 first: a reciprocal rounded once is as good as the division.
        factors = tuple(1 / number for number in wanted.std)
        now = edit.insert(first, "Mul", (now, _per_channel(edit, f"{wanted.name}_factor", factors, dims)), {}, [])
    if now is new and any(output is value for output in graph.outputs):
        now = edit.insert(first, "Identity", (now,), {}, [])
    value.replace_all_uses_with(now, replace_graph_outputs=True)


def _per_channel(edit: Edit, name: str, numbers: tuple[float, ...], dims: int) -> ir.Value:
    shape = (-1,) + (1,) * (dims - 2) if len(numbers) > 1 else ()
    return edit.constant(name, np.array(numbers, np.float32).reshape(shape))


def _append(model: ir.Model, reduction: Reduction) -> None:
    graph, edit = model.graph, Edit(model)
    index = [value.name for value in graph.outputs].index(reduction.output)
    value = graph.outputs[index]
    assert value.shape is not None
    shape = ir.Shape([dim for axis, dim in enumerate(value.shape) if axis != reduction.axis])
    position = ir.node(
        "ArgMax", [value], {"axis": reduction.axis, "keepdims": 0}, name=edit.fresh(f"{reduction.output}_argmax")
    )
    # The axes became an input in opset 18.
    if edit.opset >= 18:
        axes = edit.constant(f"{reduction.output}_axes", np.array([reduction.axis], np.int64))
        largest = ir.node("ReduceMax", [value, axes], {"keepdims": 0}, name=edit.fresh(f"{reduction.output}_max"))
    else:
        chosen = [ir.AttrInt64s("axes", [reduction.axis]), ir.AttrInt64("keepdims", 0)]
        name = edit.fresh(f"{reduction.output}_max")
        largest = ir.node("ReduceMax", [value], {each.name: each for each in chosen}, name=name)
    for node, name, kind in ((position, "index", ir.DataType.INT64), (largest, "value", ir.DataType.FLOAT)):
        output = node.outputs[0]
        output.name, output.type, output.shape = f"{reduction.output}_{name}", ir.TensorType(kind), ir.Shape(shape)
        graph.append(node)
    graph.outputs[index : index + 1] = [position.outputs[0], largest.outputs[0]]
